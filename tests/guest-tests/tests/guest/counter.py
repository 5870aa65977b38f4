"""Counts in memory and says how far; when it is told that it was forked, keeps what the event file says."""

import os
import signal
import time

count = 0


def say(path, text):
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


def forked(*_):
    with open("/run/iii/fork.json") as file:
        say("/tmp/told", f"{count} {file.read()}")


signal.signal(signal.SIGURG, forked)
kept_open = open("/tmp/kept-open", "w")
while True:
    count += 1
    kept_open.write(f"{count}\n")
    say("/tmp/count", str(count))
    time.sleep(2)
