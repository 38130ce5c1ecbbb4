"""A bare publisher and a bare subscriber, each in a process of its own. Used by `run.py`."""

import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

BLOCK = 64 * 1024
DEVICE = "bench-device"
"""Has a certificate in the fleet's folder; the topics below its name are its own."""
AT_A_TIME = 64


def client(role: str, port: int, pki: str) -> paho.Client:
    found = paho.Client(CallbackAPIVersion.VERSION2, client_id=role, reconnect_on_failure=False)
    if pki != "-":
        folder = Path(pki)
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.check_hostname = False
        context.load_cert_chain(folder / f"{role}.pem", folder / f"{role}.key")
        found.tls_set_context(context)
    found.max_inflight_messages_set(1000)
    ready = threading.Event()
    found.on_connect = lambda *_: ready.set()
    found.connect("127.0.0.1", port)
    found.loop_start()
    assert ready.wait(10)
    return found


def hear(port: int, qos: int, count: int, pki: str) -> None:
    times: list[float] = []
    done, subscribed = threading.Event(), threading.Event()
    found = client(DEVICE, port, pki)

    def received(*_: Any) -> None:
        times.append(time.perf_counter())
        if len(times) == count:
            done.set()

    found.on_message = received
    found.on_subscribe = lambda *_: subscribed.set()
    found.subscribe(f"ep/1/d/{DEVICE}/dn/#", qos)
    assert subscribed.wait(10)
    print("ready", flush=True)
    assert done.wait(40), f"{len(times)} of {count} came"
    print(times[-1] - times[0], flush=True)
    found.disconnect()


def say(port: int, qos: int, count: int, pki: str) -> None:
    found, payload = client("fleet", port, pki), bytes(BLOCK)
    waiting: list[paho.MQTTMessageInfo] = []
    for _ in range(count):
        waiting.append(found.publish(f"ep/1/d/{DEVICE}/dn/bench", payload, qos))
        if len(waiting) >= AT_A_TIME:
            waiting.pop(0).wait_for_publish(30)
    for info in waiting:
        info.wait_for_publish(30)
    found.disconnect()
    found.loop_stop()


if __name__ == "__main__":
    what, port, qos, megabytes, pki = sys.argv[1:]
    count = int(megabytes) * 10**6 // BLOCK
    {"hear": hear, "say": say}[what](int(port), int(qos), count, pki)
