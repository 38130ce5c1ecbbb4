"""What every part of edgepack agrees on: files, topics, messages, trust rules and errors."""
