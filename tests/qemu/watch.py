"""Asks an agent all the time; prints a JSON line per disk and poll of its SMART data. watch.py SOCKET"""

import http.client
import json
import socket
import sys
import time


def ask(path):
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(sys.argv[1])
    connection.request("GET", path)
    return json.load(connection.getresponse())


polled_at = {}
while True:
    readings = ask("/v1/readings?collector=smart")["readings"]
    now = time.monotonic()
    states = {
        each["attributes"]["hw.id"]: each["attributes"]["hw.state"]
        for each in readings
        if each["metric"] == "hw.status" and each["value"] == 1
    }
    for each in readings:
        if each["metric"] == "gpumon.smart.age":
            disk, at = each["attributes"]["hw.id"], now - each["age_s"] - each["value"]
            if at > polled_at.get(disk, 0.0) + 1.0:  # an answer may be half a second old
                polled_at[disk] = at
                print(json.dumps({"disk": disk, "at": round(at, 2), "state": states.get(disk)}), flush=True)
    time.sleep(0.5)
