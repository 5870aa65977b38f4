"""Answers with what `answer.txt` held when it started."""

import os

import ws

with open("/tmp/worker.pid", "w") as file:
    file.write(str(os.getpid()))
answer = open("answer.txt").read()
ws.serve({"bare::answer": lambda data: {"answer": answer, "pid": os.getpid()}})
