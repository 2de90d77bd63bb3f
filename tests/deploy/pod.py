"""A pod of a rendered Deployment, run by podman as kubelet would have it run: user, groups, read-only root, capabilities, limits,
decoded Secrets, emptyDirs, probes from outside, restarts, preStop and grace.

`podman kube play` leaves Secrets in base64 and knows neither runAsNonRoot nor probes of HTTP, so it would show nothing.
What is not done here: NetworkPolicies (a container's network has no way out instead), sizes of emptyDirs, images from a registry.
"""

import http.client
import json
import os
import pathlib
import re
import shutil
import ssl
import subprocess
import time

UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(text):
    """A quantity of Kubernetes, in bytes or cores."""
    text = str(text)
    if text.endswith("m"):
        return int(text[:-1]) / 1000
    number, unit = re.fullmatch(r"(\d+)([KMGT]i)?", text).groups()
    return int(number) * UNITS.get(unit, 1)


class Volume:
    """A folder of a Secret as kubelet lays it: the files are links through `..data`, and all change at once."""

    def __init__(self, folder, files, mode, group):
        self.folder, self.mode, self.group, self.count = folder, mode, group, 0
        folder.mkdir(parents=True)
        self.write(files)

    def write(self, files):
        self.count += 1
        now = self.folder / f"..{self.count}"
        now.mkdir()
        for file, text in files.items():
            (now / file).write_text(text)
            os.chown(now / file, 0, self.group)
            (now / file).chmod(self.mode)
            link = self.folder / file
            if not link.is_symlink():
                link.symlink_to(f"..data/{file}")
        now.chmod(0o750)
        os.chown(now, 0, self.group)
        fresh = self.folder / "..data_tmp"
        fresh.symlink_to(now.name)
        fresh.rename(self.folder / "..data")
        old = self.folder / f"..{self.count - 1}"
        if old.exists():
            shutil.rmtree(old)


class Pod:
    """One pod. `secrets` has the files of each Secret, `claims` the folder of each claim, `shown` the files of a certificate and a key
    that are shown to it."""

    def __init__(self, podman, name, objects, namespace, address, scratch, secrets, claims, shown=None):
        self.podman, self.name, self.address, self.shown = podman, name, address, shown
        deployment = next(o for o in objects if o["kind"] == "Deployment")
        self.spec = deployment["spec"]["template"]["spec"]
        (self.container,) = self.spec["containers"]
        self.ports = {p["name"]: p["containerPort"] for p in self.container["ports"]}
        self.volumes = {}
        self.folder = scratch / name
        self.log = self.folder / "log"
        command = self.command(objects, namespace, secrets, claims)
        self.podman("run", "--detach", "--pull", "never", *command)

    def command(self, objects, namespace, secrets, claims):
        pod, own = self.spec["securityContext"], self.container["securityContext"]
        both = pod | own
        group = pod["fsGroup"]
        resources = self.container["resources"]
        assert "nvidia.com/gpu" not in resources["limits"], "there is no GPU here: render with the component cpu"
        memory = quantity(resources["limits"]["memory"])
        out = ["--name", self.name, "--network", f"ns:{namespace}", "--log-driver", "k8s-file", "--log-opt", f"path={self.log}",
               "--memory", str(memory), "--memory-swap", str(memory),
               "--cpu-shares", str(int(1024 * quantity(resources["requests"]["cpu"])))]
        if both["runAsNonRoot"]:
            assert both["runAsUser"] != 0
        out += ["--user", f"{both['runAsUser']}:{both['runAsGroup']}", "--group-add", str(group)]
        if own["readOnlyRootFilesystem"]:
            # Podman would lay writable folders over /tmp and /run, which kubelet does not.
            out += ["--read-only", "--read-only-tmpfs=false"] if self.podman.knows("--read-only-tmpfs") else ["--read-only"]
        for capability in own["capabilities"]["drop"]:
            out += ["--cap-drop", capability]
        if own["allowPrivilegeEscalation"] is False:
            out += ["--security-opt", "no-new-privileges"]
        # seccompProfile RuntimeDefault is podman's default.
        assert both["seccompProfile"]["type"] == "RuntimeDefault"
        for key, value in self.environment(objects).items():
            out += ["--env", f"{key}={value}"]
        self.folder.mkdir(parents=True)
        there = {v["name"]: v for v in self.spec["volumes"]}
        for mount in self.container["volumeMounts"]:
            volume = there[mount["name"]]
            if "secret" in volume:
                wanted = volume["secret"]
                path = self.folder / mount["name"]
                # fsGroup gives the files to the group, and lets it read.
                mode = wanted.get("defaultMode", 0o644) | 0o440
                self.volumes[wanted["secretName"]] = Volume(path, secrets[wanted["secretName"]], mode, group)
            elif "emptyDir" in volume:
                path = self.folder / mount["name"]
                path.mkdir()
                os.chown(path, 0, group)
                path.chmod(0o2777)
            else:
                path = claims[volume["persistentVolumeClaim"]["claimName"]]
            out += ["--volume", f"{path}:{mount['mountPath']}:{'ro' if mount.get('readOnly') else 'rw'}"]
        out.append(self.container["image"])
        return out + self.container.get("args", [])

    def environment(self, objects):
        values = {}
        for source in self.container["envFrom"]:
            wanted = source["configMapRef"]["name"]
            values |= next(o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == wanted)["data"]
        return values | {e["name"]: e["value"] for e in self.container.get("env", [])}

    # Probes

    def ask(self, method, port, path, tls=False, headers=None, body=None, timeout=3):
        """The status of a request from outside, and its text; None where nobody answers."""
        try:
            if tls:
                # As kubelet, which does not look at the certificate.
                context = ssl._create_unverified_context()
                if self.shown:
                    context.load_cert_chain(*self.shown)
                connection = http.client.HTTPSConnection(self.address, port, timeout=timeout, context=context)
            else:
                connection = http.client.HTTPConnection(self.address, port, timeout=timeout)
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException):
            return None, ""

    def probe(self, kind, faster=1):
        """Whether a probe succeeds now. It waits as long as kubelet, divided by `faster`."""
        probe = self.container[kind]
        get = probe["httpGet"]
        port = self.ports.get(get["port"], get["port"])
        status, _ = self.ask("GET", port, get["path"], get.get("scheme") == "HTTPS", timeout=probe["timeoutSeconds"] / faster)
        return status is not None and 200 <= status < 400

    def start_up(self):
        """Waits until startupProbe and readinessProbe have succeeded. Gives the seconds."""
        probe, began = self.container["startupProbe"], time.monotonic()
        patience = probe["periodSeconds"] * probe["failureThreshold"]
        while not self.probe("startupProbe"):
            assert self.running(), f"{self.name} ended while it started:\n{self.logs()}"
            assert time.monotonic() - began < patience, f"{self.name} did not start within {patience} s:\n{self.logs()}"
            # More often than kubelet asks: this test has less time.
            time.sleep(0.1)
        assert self.probe("readinessProbe") and self.probe("livenessProbe"), f"{self.name} started and is not ready"
        return time.monotonic() - began

    def watch_until_dead(self, faster):
        """Asks livenessProbe, `faster` times as often as kubelet, until it failed as often as makes kubelet restart the container."""
        probe, failures = self.container["livenessProbe"], 0
        for _ in range(3 * probe["failureThreshold"]):
            failures = 0 if self.probe("livenessProbe", faster) else failures + 1
            if failures == probe["failureThreshold"]:
                return
            time.sleep(probe["periodSeconds"] / faster)
        raise AssertionError(f"{self.name} hangs, and its livenessProbe does not see it")

    # Life and death

    def state(self):
        return json.loads(self.podman("inspect", "--type", "container", self.name))[0]["State"]

    def running(self):
        return self.state()["Status"] == "running"

    def pid(self):
        return self.state()["Pid"]

    def restart(self):
        """As restartPolicy Always has it, without the growing pause."""
        if self.running():
            self.podman("kill", "--signal", "KILL", self.name)
            self.podman("wait", self.name)
        self.podman("start", self.name)

    def terminate(self, shorter=1):
        """preStop, its sleep divided by `shorter`, then SIGTERM. Does not wait."""
        time.sleep(self.container["lifecycle"]["preStop"]["sleep"]["seconds"] / shorter)
        self.podman("kill", "--signal", "TERM", self.name)

    def ended(self):
        """Waits for the end, no longer than the grace period. Gives the exit code."""
        began = time.monotonic()
        while self.running():
            assert time.monotonic() - began < self.spec["terminationGracePeriodSeconds"], f"{self.name} outlives its grace period"
            time.sleep(0.1)
        return self.state()["ExitCode"]

    def logs(self):
        return self.log.read_text() if self.log.exists() else ""

    def inside(self, *command):
        """A command's exit code and output within the container."""
        return self.podman.tried("exec", self.name, *command)


class Podman:
    """Podman with folders of its own."""

    def __init__(self, scratch):
        scratch = pathlib.Path(scratch)
        self.command = ["podman", "--root", str(scratch / "store"), "--runroot", str(scratch / "run"), "--tmpdir", str(scratch / "tmp"),
                        "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        self.help = subprocess.run(["podman", "run", "--help"], capture_output=True, text=True).stdout

    def knows(self, flag):
        return flag in self.help

    def tried(self, *arguments):
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def __call__(self, *arguments):
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True)
        if done.returncode != 0:
            raise AssertionError(f"podman {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
        return done.stdout
