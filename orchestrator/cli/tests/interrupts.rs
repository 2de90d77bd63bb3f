//! The binary is told to end in the middle: it ends soon, says how to go on, and leaves no session behind.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lacuna_model::device::OpenDevice;
use lacuna_orchestrator::fleet::line::http_client;
use lacuna_served::message::{Opening, tensors};
use lacuna_wire::{HostTensor, Message};
use lacuna_worker::{Model, Options, Service, serve};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

/// What a test waits for at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// More steps than anybody waits for.
const STEPS: &str = "900";

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/models/sd2")
}

/// Workers on loopback, with room for so many pictures each.
struct Workers {
    folder: tempfile::TempDir,
    services: Vec<Service>,
}

impl Workers {
    async fn start() -> Self {
        Self::with_room(1).await
    }

    async fn with_room(max_sessions: usize) -> Self {
        let device = OpenDevice::cpu();
        let unet = Model::load(&model().join("unet"), None, &[], &device.device).unwrap();
        let unet = Arc::new(unet);
        let folder = tempfile::tempdir().unwrap();
        let (mut services, mut fleet) = (Vec::new(), String::new());
        for i in 0..2 {
            let options = Options {
                max_sessions,
                ..Options::default()
            };
            let service = Service::new(unet.clone(), &device, &options).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/", listener.local_addr().unwrap());
            fleet += &format!("[[worker]]\nurl = \"{url}\"\nprovider = \"p{i}\"\n");
            let stop = std::future::pending();
            tokio::spawn(serve(listener, service.clone(), stop, Duration::ZERO));
            services.push(service);
        }
        std::fs::write(folder.path().join("fleet.toml"), fleet).unwrap();
        Self { folder, services }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `lacuna`'s `command` on these workers, with more arguments.
    fn lacuna(&self, command: &[&str], more: &[&str]) -> Child {
        // A signal that was ignored stays so, as SIGINT is for what a script runs in the background.
        let mut lacuna = Command::new("env");
        lacuna.arg("--default-signal=INT,TERM,HUP");
        lacuna.arg(env!("CARGO_BIN_EXE_lacuna"));
        lacuna.args(command).arg("--model").arg(model());
        lacuna.args(["--device", "cpu", "--workers"]);
        lacuna.arg(self.path("fleet.toml")).args(more);
        lacuna.stdout(Stdio::piped()).stderr(Stdio::piped());
        lacuna.spawn().unwrap()
    }

    fn generate(&self, steps: &str, more: &[&str]) -> Child {
        let picture = self.path("pic.png");
        let out = picture.to_str().unwrap();
        let common = [
            "--steps", steps, "--out", out, "--width", "32", "--height", "32",
        ];
        self.lacuna(&["generate", "a red circle"], &[&common, more].concat())
    }

    fn sessions(&self) -> usize {
        self.services.iter().map(Service::open_sessions).sum()
    }

    /// Waits until every worker has a session.
    async fn begun(&self) {
        let begun = async {
            while self.services.iter().any(|s| s.open_sessions() == 0) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, begun).await.expect("it begins");
        // Into the middle of a step.
        sleep(Duration::from_millis(100)).await;
    }
}

/// Goes on with a checkpoint, with nothing else said.
fn resume(folder: &str) -> Child {
    let mut lacuna = Command::new("env");
    lacuna.arg("--default-signal=INT,TERM,HUP");
    lacuna.arg(env!("CARGO_BIN_EXE_lacuna"));
    lacuna.args(["generate", "--resume", folder]);
    lacuna.stdout(Stdio::piped()).stderr(Stdio::piped());
    lacuna.spawn().unwrap()
}

/// Sends a signal, and waits for the end.
async fn end_by(signal: &str, child: Child) -> Output {
    let pid = child.id().to_string();
    let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
    assert!(sent.success());
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    timeout(PATIENCE, ended).await.expect("it ends").unwrap()
}

/// A file that never begins holds up whoever reads it; a signal is heard all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_heard_while_a_file_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    // On one core, too, where one thread would be all that there is.
    let one_core = ["taskset", "-c", "0"];
    let mut tried = Command::new(one_core[0]);
    let tried = tried.args(&one_core[1..]).arg("true").status();
    let has_taskset = tried.is_ok_and(|status| status.success());
    if !has_taskset {
        println!("skipped on one core: there is no taskset, or no core 0");
    }
    let cores: &[&[&str]] = if has_taskset {
        &[&[], &one_core]
    } else {
        &[&[]]
    };
    for (flag, core) in ["--fleet", "--policy", "--latents"]
        .iter()
        .flat_map(|flag| cores.iter().map(move |core| (flag, *core)))
    {
        let mut words = core.iter().chain(&["env"]);
        let mut lacuna = Command::new(words.next().unwrap());
        lacuna.args(words);
        lacuna.arg("--default-signal=INT,TERM,HUP");
        lacuna.arg(env!("CARGO_BIN_EXE_lacuna"));
        lacuna.args(["generate", "a", "--device", "cpu", "--model"]);
        lacuna.arg(model()).arg(flag).arg(&fifo).arg("--out");
        lacuna.arg(folder.path().join("pic.png"));
        lacuna.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = lacuna.spawn().unwrap();
        sleep(Duration::from_millis(300)).await;
        let output = end_by("-TERM", child).await;
        assert_eq!(output.status.code(), Some(143), "{flag}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_signal_leaves_a_session_behind() {
    let workers = Workers::start().await;
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129), ("-INT", 130)] {
        // Two lanes on each worker, which takes one picture: the one before has left nothing.
        let child = workers.generate(STEPS, &["--lanes", "true"]);
        workers.begun().await;
        let output = end_by(signal, child).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{signal}: {said}");
        assert_eq!(workers.sessions(), 0, "{signal}: {said}");
        assert!(said.contains("the same command with --seed "), "{said}");
        assert!(!workers.path("pic.png").exists());
    }
    let child = workers.generate("2", &[]);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(workers.sessions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_says_what_is_left_and_writes_the_report() {
    let workers = Workers::start().await;
    let report = workers.path("report.json");
    let more = ["--count", "3", "--seed", "7", "--report"];
    let more = [&more[..], &[report.to_str().unwrap()]].concat();
    // A picture of this many steps is there soon; one of the next is interrupted.
    let child = workers.generate("60", &more);
    let first = workers.path("pic-0.png");
    let made = async {
        while !first.exists() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, made).await.expect("a first picture");
    let output = end_by("-INT", child).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert_eq!(workers.sessions(), 0);
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let made = report["pictures"].as_array().unwrap().len();
    assert!((1..3).contains(&made), "{report}");
    let rest = format!("--seed {} --count {}", 7 + made, 3 - made);
    assert!(said.contains(&rest), "{rest:?} is not in: {said}");
    assert!(report["error"].as_str().unwrap().contains(&rest));
    assert!(report["ledger"]["p0"]["pictures"].as_u64().unwrap() >= made as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_ends_and_goes_on() {
    let workers = Workers::start().await;
    std::fs::write(workers.path("prompts.txt"), "a red circle\na blue square\n").unwrap();
    let [prompts, out] = ["prompts.txt", "eval"].map(|name| workers.path(name));
    let more = [
        "--prompts",
        prompts.to_str().unwrap(),
        "--schemes",
        "resident",
        "--size",
        "32x32",
        "--out",
        out.to_str().unwrap(),
    ];
    let child = workers.lacuna(&["eval"], &[&more[..], &["--steps", STEPS]].concat());
    workers.begun().await;
    let output = end_by("-TERM", child).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(143), "{said}");
    assert!(said.contains("the same command goes on"), "{said}");
    assert_eq!(workers.sessions(), 0);
}

/// Killed as by a lack of memory, or told to end: the picture that is gone on with is the one of a run that nothing happened to.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_with_a_checkpoint_goes_on_behind_any_end() {
    // The sessions of a process that was killed take their places until they expire.
    let workers = Workers::with_room(2).await;
    let child = workers.generate("60", &["--seed", "7", "--lanes", "false"]);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let want = std::fs::read(workers.path("pic.png")).unwrap();
    std::fs::remove_file(workers.path("pic.png")).unwrap();

    let folder = workers.path("run");
    let kept = folder.to_str().unwrap();
    // The seed that is drawn is kept, too; here it is given, for the picture to be the same.
    let mut child = workers.generate(
        "60",
        &["--seed", "7", "--lanes", "false", "--checkpoint", kept],
    );
    for (signal, code) in [("-INT", Some(130)), ("-KILL", None), ("-TERM", Some(143))] {
        let steps = || std::fs::read_dir(folder.join("picture-0")).map_or(0, Iterator::count);
        let before = steps();
        let further = async {
            while steps() < before + 8 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, further).await.expect("steps are kept");
        let output = end_by(signal, child).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), code, "{signal}: {said}");
        if code.is_some() {
            assert!(
                said.contains(&format!("lacuna generate --resume {kept}")),
                "{said}"
            );
        }
        assert!(!workers.path("pic.png").exists());
        child = resume(kept);
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("of them before, seed 7"), "{said}");
    assert!(std::fs::read(workers.path("pic.png")).unwrap() == want);
    assert!(!folder.exists());
    assert_eq!(workers.sessions(), workers.services.len());
}

/// A served U-Net ends as other commands do, in the middle of a picture too: no session is left, nor the file with the token.
#[tokio::test(flavor = "multi_thread")]
async fn a_served_u_net_ends_by_a_signal() {
    let workers = Workers::start().await;
    let (door, report) = (workers.path("unet.json"), workers.path("report.json"));
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let more = [
            "--door",
            door.to_str().unwrap(),
            "--report",
            report.to_str().unwrap(),
        ];
        let child = workers.lacuna(&["unet"], &more);
        let there = async {
            while !door.exists() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, there).await.expect("it serves");
        let told: Value = serde_json::from_slice(&std::fs::read(&door).unwrap()).unwrap();
        let (url, token) = (told["url"].as_str().unwrap(), &told["token"]);
        let noise = |shape: &[usize]| HostTensor::zeros(shape).into();
        let opening = Message {
            header: Opening {
                latents: [2, 16, 16],
            },
            tensors: [(tensors::CONTEXT.to_owned(), noise(&[2, 7, 32]))].into(),
        };
        let http = http_client().no_proxy().build().unwrap();
        let open = http.post(format!("{url}/v1/pictures"));
        let open = open.bearer_auth(token.as_str().unwrap());
        let opened = open.body(opening.encode().unwrap()).send().await.unwrap();
        assert_eq!(opened.status(), 201, "{}", opened.text().await.unwrap());
        assert!(workers.sessions() > 0);
        let output = end_by(signal, child).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{signal}: {said}");
        assert_eq!(workers.sessions(), 0, "{signal}: {said}");
        assert!(!door.exists(), "{signal}: {said}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            said.contains(url) && !said.contains(token.as_str().unwrap()),
            "{said}"
        );
        let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
        assert_eq!(report["ledger"]["p0"]["pictures"], 1, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_are_watched_while_they_work_until_a_signal() {
    let workers = Workers::start().await;
    let watch = |looks: &[&str]| {
        let mut lacuna = Command::new("env");
        lacuna.arg("--default-signal=INT,TERM,HUP");
        lacuna.arg(env!("CARGO_BIN_EXE_lacuna"));
        lacuna.args(["workers", "--watch", "1", "--fleet"]);
        lacuna.arg(workers.path("fleet.toml")).args(looks);
        lacuna.stdout(Stdio::piped()).stderr(Stdio::piped());
        lacuna.spawn().unwrap()
    };
    let child = workers.generate(STEPS, &[]);
    workers.begun().await;
    let looked = watch(&["--looks", "2"]);
    let looked = tokio::task::spawn_blocking(move || looked.wait_with_output().unwrap());
    let output = looked.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let second = said.split("\n\n").nth(1).expect("a second look");
    for (line, provider) in second.lines().skip(1).zip(["p0", "p1"]) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[0], provider, "{said}");
        let parts: Vec<f64> = words
            .iter()
            .rev()
            .take(3)
            .map(|w| w.parse().unwrap())
            .collect();
        assert!((parts.iter().sum::<f64>() - 100.0).abs() <= 2.0, "{said}");
        assert!(parts[2] > 0.0, "it computes: {said}");
    }
    end_by("-INT", child).await;
    let forever = watch(&[]);
    sleep(Duration::from_millis(500)).await;
    let output = end_by("-INT", forever).await;
    assert_eq!(output.status.code(), Some(130));
}
