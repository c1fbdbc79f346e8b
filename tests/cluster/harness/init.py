"""The first process of a cluster's namespaces: lays private folders over the machine's, then buries orphans."""

import os
import signal
import subprocess

# Where the runtime and the kubelet leave files whatever they are told.
PRIVATE = ("/run", "/var/lib", "/var/log")


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    for folder in PRIVATE:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", folder], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.makedirs("/run/netns")
    print("ready", flush=True)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            signal.sigwait({signal.SIGCHLD})


if __name__ == "__main__":
    main()
