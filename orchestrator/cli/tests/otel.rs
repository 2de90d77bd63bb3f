//! Spans of both sides at a collector of the test's own, which keeps what it is sent: the sessions are in it, and nothing that is
//! for nobody to know. Nothing is sent where nobody asks for it.
#![cfg(feature = "otel")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};

use common::lacuna;
use tests::processes::{Setup, WorkerProcess, worker_binary};

const PROMPT: &str = "the prompt of a test";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// What takes spans on loopback.
struct Collector {
    url: String,
    requests: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let kept = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let kept = kept.clone();
                std::thread::spawn(move || keep(&stream.unwrap(), &kept));
            }
        });
        Self { url, requests }
    }

    /// All that came, heads included.
    fn all(&self) -> Vec<u8> {
        self.requests.lock().unwrap().concat()
    }
}

/// Keeps the requests of a connection.
fn keep(mut stream: &TcpStream, kept: &Mutex<Vec<Vec<u8>>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = Vec::new();
        let mut len = 0;
        loop {
            let from = request.len();
            if reader.read_until(b'\n', &mut request).unwrap_or(0) == 0 {
                return;
            }
            let line = String::from_utf8_lossy(&request[from..]).to_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                len = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; len];
        reader.read_exact(&mut body).unwrap();
        request.extend(body);
        kept.lock().unwrap().push(request);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    }
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/models/sd2")
}

/// A picture by the workers of a fleet file of this `text`, with further `variables`.
fn generate(dir: &Path, text: &str, variables: &[(&str, &str)]) -> Output {
    let fleet = dir.join("fleet.toml");
    std::fs::write(&fleet, text).unwrap();
    let mut command = lacuna();
    command.env_clear().env("RUST_LOG", "trace");
    command.envs(variables.iter().copied());
    command.args(["generate", PROMPT, "--steps", "2", "--seed", "3"]);
    command.args(["--device", "cpu", "--model"]).arg(model());
    command.arg("--fleet").arg(fleet);
    command.arg("--out").arg(dir.join("picture.png"));
    command.output().unwrap()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

#[test]
fn a_collector_gets_the_sessions_of_both_sides_and_no_secret() {
    let Some(binary) = worker_binary() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (ours, theirs) = (Collector::start(), Collector::start());
    let identity = dir.join("identity");
    let mut worker = WorkerProcess::start(Setup {
        binary,
        model: model(),
        log: dir.join("worker.log"),
        level: "trace".into(),
        arguments: ["--identity", identity.to_str().unwrap(), "--entry"]
            .map(str::to_owned)
            .into(),
        variables: vec![
            (ENDPOINT.into(), theirs.url.clone()),
            ("OTEL_BSP_SCHEDULE_DELAY".into(), "100".into()),
        ],
    });
    let entry = worker.entry();
    let made = generate(dir, &entry, &[(ENDPOINT, &ours.url)]);
    let own = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success(), "{own}");
    worker.signal("TERM");
    while worker.is_running() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let log = std::fs::read_to_string(worker.log()).unwrap();
    let session = own.split("exchange{session=\"").nth(1).unwrap();
    let session = session.split('"').next().unwrap();
    assert_eq!(session.len(), 8, "{own}");

    let token = std::fs::read_to_string(identity.join("tokens")).unwrap();
    let key = std::fs::read_to_string(identity.join("key.pem")).unwrap();
    let key = key.lines().nth(1).unwrap();
    let check = |sent: &[u8], service: &str| {
        for part in ["POST /v1/traces", service, "exchange", session] {
            assert!(holds(sent, part), "{service} sent no {part}");
        }
        // Lines of the log do not go out, nor what dependencies say.
        for part in [
            token.trim(),
            PROMPT,
            key,
            "opened a session",
            "hyper",
            "rustls",
        ] {
            assert!(!holds(sent, part), "{service} sent {part}");
        }
    };
    check(&ours.all(), "lacuna");
    if log.contains("build with --features otel") {
        println!("skipped: the worker was built without otel");
        assert!(theirs.all().is_empty());
    } else {
        check(&theirs.all(), "lacuna-worker");
    }
}

#[test]
fn nothing_is_sent_that_nobody_asked_for() {
    let collector = Collector::start();
    let folder = tempfile::tempdir().unwrap();
    let Some(binary) = worker_binary() else {
        return;
    };
    let worker = WorkerProcess::start(Setup {
        binary,
        model: model(),
        log: folder.path().join("worker.log"),
        level: "info".into(),
        arguments: Vec::new(),
        variables: Vec::new(),
    });
    let entry = format!(
        "[[worker]]\nurl = \"http://{}\"\nprovider = \"p\"\n",
        worker.address()
    );
    for variables in [&[][..], &[(ENDPOINT, "")]] {
        let made = generate(folder.path(), &entry, variables);
        assert!(made.status.success());
    }
    assert!(collector.all().is_empty());
    // A collector that is gone costs no picture.
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let made = generate(
        folder.path(),
        &entry,
        &[(ENDPOINT, &format!("http://{gone}"))],
    );
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
    let made = generate(folder.path(), &entry, &[(ENDPOINT, &collector.url)]);
    assert!(made.status.success() && !collector.all().is_empty());
}

#[test]
fn spans_do_not_go_in_the_clear_to_others() {
    let start = |variables: &[(&str, &str)]| {
        let mut command = lacuna();
        command.env_clear().envs(variables.iter().copied());
        command.arg("--version").output().unwrap()
    };
    let plain = (ENDPOINT, "http://198.18.9.9:4318");
    let refused = start(&[plain]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains(ENDPOINT) && said.contains("https"), "{said}");
    // Said to be good enough, it is taken; no span is there to be sent.
    let taken = start(&[plain, ("OTEL_EXPORTER_OTLP_INSECURE", "true")]);
    assert!(taken.status.success());
}
