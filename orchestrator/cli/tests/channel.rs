//! A worker's binary on the open internet, as far as one machine has it: TLS of its own, pins, certificates of clients, and
//! tokens that change.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tests::processes::{Setup, WorkerProcess, worker_binary};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/models/sd2")
}

/// Starts a worker with `arguments`, its log at the most verbose level in the folder `dir`; none where only this package was
/// built.
fn start(dir: &Path, arguments: &[&str]) -> Option<WorkerProcess> {
    Some(WorkerProcess::start(Setup {
        binary: worker_binary()?,
        model: model(),
        log: dir.join("worker.log"),
        level: "trace".into(),
        arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
        variables: Vec::new(),
    }))
}

/// A picture by the workers of a fleet file of this `text`.
fn generate(dir: &Path, text: &str) -> Output {
    generate_saying(dir, text, "warn")
}

/// The same with a log of this level.
fn generate_saying(dir: &Path, text: &str, level: &str) -> Output {
    let fleet = dir.join("fleet.toml");
    std::fs::write(&fleet, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.env_clear().env("RUST_LOG", level).args([
        "generate",
        "the prompt of a test",
        "--steps",
        "2",
        "--seed",
        "3",
        "--device",
        "cpu",
    ]);
    command
        .arg("--model")
        .arg(model())
        .arg("--fleet")
        .arg(fleet);
    command.arg("--out").arg(dir.join("picture.png"));
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_worker_joins_by_one_command_and_one_paste() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let identity = dir.join("identity");
    let arguments = ["--identity", identity.to_str().unwrap(), "--entry"];
    let Some(mut worker) = start(dir, &arguments) else {
        return;
    };
    let entry = worker.entry();
    assert!(
        entry.contains(&format!("https://{}", worker.address())),
        "{entry}"
    );
    let made = generate(dir, &entry);
    assert!(made.status.success(), "{}", said(&made));
    let token = std::fs::read_to_string(identity.join("tokens")).unwrap();
    let token = token.trim();

    // Another key, no pin, no TLS, another token: each is told by its name.
    let pin = entry.lines().find(|line| line.starts_with("pin")).unwrap();
    let other = format!("pin = \"sha256:{}\"", "0".repeat(64));
    let url = format!("https://{}", worker.address());
    for (from, to, part) in [
        (pin, &*other, "certificate"),
        (pin, "", "certificate"),
        (&url, &url.replace("https", "http"), "are for https"),
        (token, "another", "token"),
    ] {
        let text = entry.replace(from, to);
        let refused = generate(dir, &text);
        assert!(!refused.status.success(), "{text}");
        assert!(said(&refused).contains(part), "{part}: {}", said(&refused));
        assert!(!said(&refused).contains(token), "{}", said(&refused));
    }
    let plain = entry.replace(pin, "").replace("https", "http");
    assert!(!generate(dir, &plain).status.success());

    // At their most verbose both sides say nothing that is for nobody to know, and which sessions they speak of.
    let own = said(&generate_saying(dir, &entry, "trace"));
    let log = std::fs::read_to_string(worker.log()).unwrap();
    assert!(log.contains("opened a session"), "{log}");
    let key = std::fs::read_to_string(identity.join("key.pem")).unwrap();
    let key = key.lines().nth(1).unwrap();
    for secret in [token, "the prompt of a test", key] {
        assert!(!log.contains(secret), "the log holds {secret}");
        assert!(!own.contains(secret), "the user's log holds {secret}");
    }
    let opened = own.lines().find(|line| line.contains("opened a session"));
    let session = opened.and_then(|line| line.split("session=\"").nth(1));
    let session = session.and_then(|rest| rest.split('"').next()).unwrap();
    assert_eq!(session.len(), 8, "{own}");
    for side in [&own, &log] {
        assert!(
            side.contains(&format!("exchange{{session=\"{session}\"")),
            "{session}: {side}"
        );
    }

    // A new token is good within seconds, and the old one is not any more.
    std::fs::write(identity.join("tokens"), "a-new-token\n").unwrap();
    let renewed = entry.replace(token, "a-new-token");
    let mut tries = (0..40).map(|_| {
        std::thread::sleep(Duration::from_millis(500));
        generate(dir, &renewed).status.success()
    });
    assert!(tries.any(|made| made));
    assert!(said(&generate(dir, &entry)).contains("token"));
}

#[test]
fn who_shows_no_certificate_stays_outside() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name).to_str().unwrap().to_owned()
    };
    let certified = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let [pem, private] = [format!("{name}.pem"), format!("{name}.key")];
        [
            write(&pem, &certificate.pem()),
            write(&private, &key.serialize_pem()),
        ]
    };
    let ca = write("ca.pem", &authority.pem());
    let [certificate, key] = certified("worker");
    certified("me");
    let arguments = [
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
        "--client-ca",
        &ca,
        "--token",
        "t",
    ];
    let Some(worker) = start(dir, &arguments) else {
        return;
    };
    let entry = format!(
        "[[worker]]\nurl = \"https://{}\"\nprovider = \"p\"\ntoken = \"t\"\nca = \"ca.pem\"\n",
        worker.address()
    );
    let own = "client_cert = \"me.pem\"\nclient_key = \"me.key\"\n";
    let made = generate(dir, &format!("{entry}{own}"));
    assert!(made.status.success(), "{}", said(&made));
    let refused = generate(dir, &entry);
    assert!(!refused.status.success());
    assert!(
        said(&refused).contains("does not answer"),
        "{}",
        said(&refused)
    );
    // A file that is none is named.
    let refused = generate(dir, &entry.replace("ca.pem", "no.pem"));
    assert!(said(&refused).contains("no.pem"), "{}", said(&refused));
}

#[test]
fn plain_http_is_for_this_machine_alone() {
    let Some(binary) = worker_binary() else {
        return;
    };
    let start = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command
            .env_clear()
            .args(["--model", "nowhere", "--device", "cpu"]);
        said(&command.args(arguments).output().unwrap())
    };
    for listen in ["0.0.0.0:0", "[::]:0", "198.18.9.9:7700"] {
        let refused = start(&["--listen", listen]);
        assert!(
            refused.contains("--identity DIR") && refused.contains(listen),
            "{refused}"
        );
    }
    let refused = start(&["--client-ca", "ca.pem"]);
    assert!(refused.contains("--client-ca needs a channel"), "{refused}");
    // Asked for, it is taken, and the next thing fails.
    for allowed in [
        &["--listen", "0.0.0.0:0", "--insecure"][..],
        &["--listen", "127.0.0.1:0"],
    ] {
        let said = start(allowed);
        assert!(said.contains("nowhere"), "{said}");
    }
}
