"""The server's interpreter with a heartbeat: spins on the clock in the memory that examples/server.py has, and records the largest
gap between two looks. pulse.py DIR: as heartbeat --samples (tests/programs/README.md). Ends at DIR/gate, or after ten minutes."""
import gc, http.server, os, sys, threading, time

where = sys.argv[1] + "/"
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
gc.disable()
clock, begin = time.monotonic_ns, time.monotonic_ns()
with open(where + "ready", "w") as f:
    f.write(str(os.getpid()))
while not os.path.exists(where + "gate") and clock() - begin < 600_000_000_000:
    worst, gaps, last = 0, [], clock()
    while not os.path.exists(where + "sample"):
        for _ in range(1000):
            now = clock()
            if now - last > 300_000:
                gaps.append(f"gap_ns {last} {now - last}\n")
            if now - last > worst:
                worst = now - last
            last = now
        if os.path.exists(where + "gate"):
            break
    else:
        with open(where + ".gap", "w") as f:
            f.write(f"worst_ns {worst}\n" + "".join(gaps))
        os.unlink(where + "sample")
        os.rename(where + ".gap", where + "gap")
with open(where + "result", "w") as f:
    f.write("OK\n")
