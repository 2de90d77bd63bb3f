"""Four workers of the rendered overlays, in containers on four networks, make the demo picture. Run by scripts/containers.sh.

    containers.py BINARIES SCRATCH      # needs root, podman, the image lacuna-worker:0.1.0 and the networks that the script makes
"""

import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(pathlib.Path(__file__).parent)]
import check_manifests  # noqa: E402
from pod import Pod, Podman, quantity  # noqa: E402

KUBERNETES = ROOT / "configs/kubernetes"
MODEL = ROOT / "assets/demo-model"
PROMPT = "a large red circle above a small blue square on a yellow background"
CLOUDS = "abcd"


def say(text):
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def run(*command, **more):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True, **more).stdout


class Authority:
    """An authority of our own, and certificates by it."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder
        self.serial = 0
        self.key = self.make_key("ca")
        self.ca = folder / "ca.pem"
        run("openssl", "req", "-x509", "-new", "-key", self.key, "-days", "2", "-subj", "/CN=test", "-out", self.ca,
            "-addext", "basicConstraints=critical,CA:TRUE")

    def make_key(self, name):
        path = self.folder / f"{name}.key"
        run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path)
        return path

    def certify(self, key, address):
        """A certificate for a key, as PEM."""
        self.serial += 1
        extensions = self.folder / "extensions"
        extensions.write_text(f"subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n")
        request = run("openssl", "req", "-new", "-key", key, "-subj", f"/CN={address}")
        return run("openssl", "x509", "-req", "-CA", self.ca, "-CAkey", self.key, "-days", "2", "-set_serial", self.serial,
                   "-extfile", extensions, input=request)

    @staticmethod
    def by_itself(key, address):
        """A certificate that nobody vouches for, as docs/deploy.md makes one, as PEM."""
        return run("openssl", "req", "-x509", "-new", "-key", key, "-days", "825", "-subj", f"/CN={address}",
                   "-addext", f"subjectAltName=IP:{address}")

    @staticmethod
    def pin(key):
        der = subprocess.run(["openssl", "pkey", "-in", str(key), "-pubout", "-outform", "DER"], check=True, capture_output=True).stdout
        return "sha256:" + hashlib.sha256(der).hexdigest()


def render(cloud, *components):
    """An overlay with components, as applied to a cluster."""
    with tempfile.TemporaryDirectory() as folder:
        there = os.path.relpath(KUBERNETES, os.path.realpath(folder))
        text = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
                "resources": [f"{there}/overlays/provider-{cloud}"], "components": [f"{there}/components/{c}" for c in components]}
        (pathlib.Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(text))
        return list(yaml.safe_load_all(run(os.environ["KUBECTL"], "kustomize", folder)))


class Journey:
    def __init__(self, binaries, scratch):
        self.binaries, self.scratch = binaries, scratch
        self.podman = Podman(scratch)
        image = "lacuna-worker:0.1.0"
        self.known = set(re.findall(r"\[env: (\w+)", self.podman("run", "--rm", "--network", "none", image, "--help")))
        self.authority = Authority(scratch / "authority")
        # The claim: the U-Net alone, as model-loader.yaml would have put it there.
        self.claim = scratch / "claim"
        shutil.copytree(MODEL / "unet", self.claim)
        self.pods, self.tokens, self.keys, entries = {}, {}, {}, []
        mine = self.authority.make_key("mine")
        certificate = scratch / "mine.pem"
        certificate.write_text(self.authority.certify(mine, "192.0.2.1"))
        for i, cloud in enumerate(CLOUDS, 1):
            address = f"198.18.{100 + i}.2"
            # One of them lets in only who has a certificate (mTLS).
            mutual = cloud == "d"
            objects = render(cloud, "cpu", *(["client-certificates"] if mutual else []))
            faults = check_manifests.faults(objects, self.known)
            assert not faults, faults
            self.tokens[cloud] = token = secrets.token_hex(16)
            self.keys[cloud] = key = self.authority.make_key(cloud)
            # Known by a pin, or by an authority.
            pinned = i % 2 == 1
            certify = Authority.by_itself if pinned else self.authority.certify
            made = {"lacuna-tls": {"tls.crt": certify(key, address), "tls.key": key.read_text()},
                    "lacuna-tokens": {"tokens": f"{token}\n"},
                    "lacuna-client-ca": {"ca.crt": self.authority.ca.read_text()}}
            self.pods[cloud] = Pod(self.podman, f"lacuna-{cloud}", objects, f"/run/netns/lacuna-pod-{i}", address, scratch, made,
                                   {"lacuna-model": self.claim}, (certificate, mine) if mutual else None)
            entry = f'[[worker]]\nurl = "https://{address}:7700"\nprovider = "{cloud}"\ntoken_env = "TOKEN_{cloud}"\n'
            entry += f'pin = "{Authority.pin(key)}"\n' if pinned else f'ca = "{self.authority.ca}"\n'
            if mutual:
                entry += f'client_cert = "{certificate}"\nclient_key = "{mine}"\n'
            entries.append(entry)
        self.fleet = scratch / "fleet.toml"
        self.fleet.write_text("\n".join(entries))

    # Asking

    def environment(self, **other):
        return os.environ | {f"TOKEN_{cloud}": token for cloud, token in (self.tokens | other).items()}

    def lacuna(self, *arguments, **tokens):
        done = subprocess.run([str(self.binaries / "lacuna"), *map(str, arguments)], capture_output=True, text=True,
                              env=self.environment(**tokens))
        return done.returncode, done.stdout + done.stderr

    def workers(self, **tokens):
        return self.lacuna("workers", "--fleet", self.fleet, **tokens)

    def generate(self, name, steps, *more):
        """The command that makes a picture through all four."""
        return [str(self.binaries / "lacuna"), "generate", "-m", str(MODEL), "-p", PROMPT, "--seed", "7", "--steps", str(steps),
                "--device", "cpu", "-o", str(self.scratch / f"{name}.png"), *map(str, more)]

    def through(self, name, steps):
        return self.generate(name, steps, "--fleet", self.fleet, "--report", self.scratch / f"{name}.json")

    def picture(self, name, steps):
        run(*self.through(name, steps), env=self.environment())
        self.judge(name, steps)

    def judge(self, name, steps):
        """Holds a picture to the one that is made at home, and its report to the policy `private`."""
        home = self.scratch / f"home-{steps}.png"
        if not home.exists():
            run(*self.generate(f"home-{steps}", steps, "--scheme", "local"))
        told = run(self.binaries / "lacuna", "metrics", self.scratch / f"{name}.png", home, "--metrics", "psnr", "--json")
        psnr = json.loads(told)["psnr"]
        assert psnr is None or psnr >= 60, (name, psnr)
        views = json.loads((self.scratch / f"{name}.json").read_text())["ledger"]
        assert set(views) == set(CLOUDS), views
        for cloud, view in views.items():
            assert view["rows"] <= 0.25 + 1e-9 and not view["prompt"], (cloud, view)
        self.psnr = "the same picture" if psnr is None else f"{psnr:.1f} dB"

    # What is tried

    def start(self):
        slowest = max(pod.start_up() for pod in self.pods.values())
        say(f"four pods are live, started and ready; the slowest took {slowest:.1f} s more than the others waited for")
        code, text = self.workers()
        assert code == 0, text
        code, text = self.workers(a="wrong")
        assert code != 0 and self.tokens["a"] not in text, text
        say("`lacuna workers` sees four; with another token it does not")
        for pod in self.pods.values():
            assert pod.ask("GET", 7700, "/health/live")[0] != 200, "plain HTTP is answered on the port of work"
        say("plain HTTP is not answered on the port of work")
        bare = self.scratch / "bare.toml"
        bare.write_text("".join(line for line in self.fleet.read_text().splitlines(True) if not line.startswith("client_")))
        assert self.lacuna("workers", "--fleet", bare)[0] != 0, "who shows no certificate is let in"
        other = self.scratch / "other.toml"
        pins = re.compile('pin = "sha256:.')
        other.write_text(pins.sub(lambda m: m[0][:-1] + format(int(m[0][-1], 16) ^ 1, "x"), self.fleet.read_text()))
        assert self.lacuna("workers", "--fleet", other)[0] != 0, "a worker with another key is believed"
        say("who shows no certificate is not let in where one is asked for, and a worker with another key is not believed")

    def confined(self):
        """What the manifests say of a container is so within it."""
        for cloud, pod in self.pods.items():
            def inside(text):
                return pod.inside("sh", "-c", text)

            code, told = inside("id -u; id -g; cat /proc/1/status")
            assert code == 0, told
            uid, gid, *status = told.split("\n")
            status = dict(line.split(":", 1) for line in status if ":" in line)
            assert (uid, gid) == ("65532", "65532"), (uid, gid)
            for field, wanted in (("CapEff", 0), ("CapPrm", 0), ("CapBnd", 0), ("NoNewPrivs", 1), ("Seccomp", 2)):
                assert int(status[field], 16) == wanted, (cloud, field, status[field])
            for path in ("/", "/tmp", "/run", "/usr/local/bin", "/model", "/secrets/tls", "/secrets/tokens"):
                code, told = inside(f"touch {path}/x")
                assert code != 0, f"{cloud}: {path} can be written to"
            assert inside("touch /cache/x && rm /cache/x")[0] == 0, "the cache cannot be written to"
            code, told = inside("cat /secrets/tokens/tokens; stat -L -c %a /secrets/tokens/tokens /secrets/tls/tls.key")
            assert told.split() == [self.tokens[cloud], "440", "440"], told
            # Nowhere to go: its own network and no way out of it.
            _, told = inside("cat /proc/net/route")
            routes = [line.split()[1] for line in told.strip().split("\n")[1:]]
            assert routes and "00000000" not in routes, told
            limit = quantity(pod.container["resources"]["limits"]["memory"])
            group = pathlib.Path(f"/proc/{pod.pid()}/cgroup").read_text()
            found = [p for line in group.split("\n") if line for p in limits(line)]
            assert found and int(found[0].read_text()) == limit, (group, found)
        say("within: user 65532, no capability, no new privileges, seccomp, a read-only root, Secrets of mode 440, a limit of memory,"
            " no way out")

    def metrics(self):
        wanted, found = check_manifests.exported_metrics(), {}
        for pod in self.pods.values():
            status, text = pod.ask("GET", pod.ports["metrics"], "/metrics")
            assert status == 200, text
            # What has not happened yet is not told: the refusals are those of some.
            found |= check_manifests.exported_metrics(text)
            command = [os.environ["PROMTOOL"], "check", "metrics"]
            checked = subprocess.run(command, input=check_manifests.classic(text), capture_output=True, text=True)
            assert checked.returncode == 0, checked.stdout + checked.stderr + text
            assert pod.ask("GET", 7700, "/metrics", tls=True)[0] != 200, "metrics are told on the port of work"
        missing = {k: v for k, v in wanted.items() if found.get(k) != v}
        assert not missing, f"tests/deploy/metrics.txt has what no worker exports: {missing}"
        say("metrics are those that alerts, dashboard and autoscaler go by, and promtool has nothing to say")

    def rotate(self):
        """New tokens beside old ones, a renewed certificate, and no restart."""
        pod, old, new = self.pods["a"], self.tokens["a"], secrets.token_hex(16)
        pid = pod.pid()
        tokens = pod.volumes["lacuna-tokens"]
        tokens.write({"tokens": f"{new}\n{old}\n"})
        self.until("both tokens are good", lambda: self.workers(a=new)[0] == 0 and self.workers(a=old)[0] == 0)
        tokens.write({"tokens": f"{new}\n"})
        self.until("the old token is no good", lambda: self.workers(a=old)[0] != 0)
        self.tokens["a"] = new
        # The same key, so that the pin stays.
        before = self.serial(pod)
        renewed = {"tls.crt": Authority.by_itself(self.keys["a"], pod.address), "tls.key": self.keys["a"].read_text()}
        pod.volumes["lacuna-tls"].write(renewed)
        self.until("the renewed certificate is shown", lambda: self.serial(pod) != before)
        code, text = self.workers()
        assert code == 0 and pod.pid() == pid, text
        say("a token is changed for another and a certificate renewed, without a restart; the pin stays")

    def serial(self, pod):
        shown = subprocess.run(["openssl", "s_client", "-connect", f"{pod.address}:7700"], input="", capture_output=True, text=True).stdout
        return run("openssl", "x509", "-noout", "-serial", input=shown) if "BEGIN CERTIFICATE" in shown else None

    def until(self, what, holds, seconds=30):
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < seconds, f"after {seconds} s not yet: {what}"
            time.sleep(0.2)

    def restart(self):
        """A worker that hangs is seen by its livenessProbe, and killed; the next picture is as the first."""
        pod = self.pods["c"]
        self.podman("pause", pod.name)
        pod.watch_until_dead(faster=50)
        self.podman("unpause", pod.name)
        pod.restart()
        took = pod.start_up()
        self.picture("after", 4)
        say(f"a pod that hangs is found by its livenessProbe, restarted, and ready {took:.1f} s later; {self.psnr}")

    def drain(self):
        """SIGTERM in the middle of a picture: not ready, nobody new, and the picture ends as if nothing had been."""
        pod, steps = self.pods["b"], 60
        painting = subprocess.Popen(self.through("drained", steps), env=self.environment(), stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, text=True)
        # Not the measurement of the link before it: two lanes, so two sessions more.
        opened = pod.logs().count("opened a session")
        self.until("the picture's sessions are open", lambda: pod.logs().count("opened a session") > opened)
        pod.terminate(shorter=20)
        self.until("it is not ready", lambda: not pod.probe("readinessProbe"), seconds=5)
        assert pod.probe("livenessProbe"), "kubelet would kill it while it drains"
        assert painting.poll() is None, "the picture was too fast for this test"
        asked = {"Authorization": f"Bearer {self.tokens['b']}", "Content-Type": "application/json"}
        status, text = pod.ask("POST", 7700, "/v1/sessions", tls=True, headers=asked, body="{}")
        assert status == 503, (status, text)
        told, _ = painting.communicate(timeout=300)
        assert painting.returncode == 0, told
        ended = pod.ended()
        assert ended == 0, (ended, pod.logs())
        self.judge("drained", steps)
        assert "lost" not in told, told
        say(f"a pod that is told to end in the middle of a picture is not ready at once, takes no session, serves the picture to its end, and exits with 0; {self.psnr}")

    def quick_end(self):
        """Pods without a picture end at once, with 0."""
        for cloud in "acd":
            began = time.monotonic()
            self.pods[cloud].terminate(shorter=1000)
            code, took = self.pods[cloud].ended(), time.monotonic() - began
            assert code == 0 and took < 10, (cloud, code, took, self.pods[cloud].logs())
        say("pods without a picture end within 10 s, with 0")

    def silent(self):
        """Logs name no token and no prompt."""
        for pod in self.pods.values():
            text = pod.logs()
            assert "ready on" in text, text
            for secret in [*self.tokens.values(), PROMPT, "PRIVATE KEY"]:
                assert secret not in text, f"{pod.name}'s log has a secret"
        say("no log has a token, a key or the prompt")


def limits(line):
    """Where a line of /proc/PID/cgroup has its limit of memory."""
    _, controllers, path = line.split(":", 2)
    where = pathlib.Path("/sys/fs/cgroup")
    named = [where / "memory" / path[1:] / "memory.limit_in_bytes"] if "memory" in controllers else []
    unified = [where / path[1:] / "memory.max", where / "unified" / path[1:] / "memory.max"] if not controllers else []
    return [p for p in named + unified if p.exists()]


def main():
    journey = Journey(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve())
    journey.start()
    journey.confined()
    journey.picture("four", 10)
    say(f"four pods on four networks, of four overlays, make the demo picture; no provider saw more than a quarter: {journey.psnr}")
    journey.metrics()
    journey.rotate()
    journey.restart()
    journey.drain()
    journey.quick_end()
    journey.silent()
    print(f"containers: the demo picture through four pods over TLS, {journey.psnr};"
          " probes, restart, drain and confinement hold")


BEGAN = time.monotonic()
if __name__ == "__main__":
    main()
