//! The binary's outputs: what becomes of pictures and reports when a stream or a path is odd.
#![cfg(unix)]

mod common;

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::lacuna;

/// `lacuna` in a folder of its own, with nothing of ours in its environment.
struct Workplace {
    folder: tempfile::TempDir,
}

impl Workplace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Names of the files that are there.
    fn names(&self) -> Vec<OsString> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<OsString> = entries.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    }

    /// Two small steps on this machine, with more arguments.
    fn generate(&self, more: &[&OsStr]) -> Command {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/models/sd2");
        let mut command = self.lacuna(&["generate", "a red circle", "--scheme", "local"]);
        command.arg("--model").arg(tiny.canonicalize().unwrap());
        command.args(["--device", "cpu", "--steps", "2"]).args(more);
        command
    }

    fn lacuna(&self, arguments: &[&str]) -> Command {
        let mut command = lacuna();
        command.args(arguments).current_dir(self.folder.path());
        command
    }
}

fn words<'a>(words: &[&'a str]) -> Vec<&'a OsStr> {
    words.iter().map(|word| OsStr::new(*word)).collect()
}

/// An output stream that fails at once, and not because its reader left: it is full, and does not wait.
fn full() -> (Stdio, UnixStream) {
    let (mut ours, other) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    while ours.write(&[0; 4096]).is_ok() {}
    (OwnedFd::from(ours).into(), other)
}

/// An output stream that nobody reads.
fn closed() -> Stdio {
    let (ours, _) = UnixStream::pair().unwrap();
    OwnedFd::from(ours).into()
}

#[track_caller]
fn is_png(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[1..4], b"PNG", "{}", path.display());
}

#[track_caller]
fn refused(output: &Output, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert!(parts.iter().all(|part| stderr.contains(part)), "{stderr}");
}

#[test]
fn a_standard_output_that_fails_costs_no_picture_and_no_report() {
    let arguments = words(&["--count", "3", "--out", "p.png", "--report", "p.json"]);
    let wanted = ["p-0.png", "p-1.png", "p-2.png", "p.json"].map(OsString::from);

    let place = Workplace::new();
    let output = place
        .generate(&arguments)
        .stdout(closed())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(place.names(), wanted);

    let place = Workplace::new();
    let (stdout, _reader) = full();
    let output = place.generate(&arguments).stdout(stdout).output().unwrap();
    refused(&output, &["cannot write the standard output"]);
    assert_eq!(place.names(), wanted);
}

#[test]
fn a_picture_for_a_standard_output_that_is_closed_is_refused() {
    let place = Workplace::new();
    let mut whole = place.generate(&words(&["--out", "-"]));
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "exec \"$@\" >&-", "sh"])
        .arg(whole.get_program());
    shell
        .args(whole.get_args())
        .current_dir(place.folder.path());
    let output = shell.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(stderr.contains("the standard output is closed"), "{stderr}");
    // Thrown away on purpose it may be.
    assert!(whole.stdout(Stdio::null()).status().unwrap().success());
}

#[test]
fn no_command_panics_at_a_full_stream() {
    let place = Workplace::new();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/models/sd15");
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["generate", "--help"],
        &["cost", "--model", model],
        &["cost", "--model", model, "--paper-tables"],
        &["plan", "--model", model, "--device", "cpu", "--json"],
    ] {
        let (stdout, _reader) = full();
        let output = place.lacuna(arguments).stdout(stdout).output().unwrap();
        refused(&output, &["cannot write the standard output"]);
        let output = place.lacuna(arguments).stdout(closed()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
    // Nowhere to say what is wrong.
    let (stderr, _reader) = full();
    let mut command = place.lacuna(&["cost", "--model", "/nowhere/at/all"]);
    let output = command.stderr(stderr).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_picture_goes_to_the_standard_output() {
    let place = Workplace::new();
    let output = place.generate(&words(&["--out", "-"])).output().unwrap();
    assert_eq!(&output.stdout[1..4], b"PNG");
    assert_eq!(&output.stdout[output.stdout.len() - 8..][..4], b"IEND");
    assert!(String::from_utf8_lossy(&output.stderr).contains("seed"));
    assert!(place.names().is_empty());
    // There it is the picture that is lost.
    let output = place
        .generate(&words(&["--out", "-"]))
        .stdout(closed())
        .output();
    refused(&output.unwrap(), &["cannot write the standard output"]);
    let output = place
        .generate(&words(&["--out", "-", "--count", "2"]))
        .output();
    refused(&output.unwrap(), &["--out -", "2"]);
}

#[test]
fn a_name_that_is_no_utf_8_is_kept() {
    let place = Workplace::new();
    let name = OsString::from_vec(b"caf\xe9.png".to_vec());
    let arguments = [OsStr::new("--count"), "2".as_ref(), "--out".as_ref(), &name];
    let output = place.generate(&arguments).output().unwrap();
    assert!(output.status.success());
    let wanted = [&b"caf\xe9-0.png"[..], b"caf\xe9-1.png"];
    assert_eq!(
        place.names(),
        wanted.map(|n| OsString::from_vec(n.to_vec()))
    );
}

#[test]
fn what_is_at_the_path_already_is_respected() {
    let place = Workplace::new();
    std::fs::write(place.path("y.png.partial"), "precious").unwrap();
    std::fs::write(place.path("target.png"), "old").unwrap();
    std::os::unix::fs::symlink("target.png", place.path("link.png")).unwrap();
    for out in ["y.png", "link.png"] {
        let output = place.generate(&words(&["--out", out])).output().unwrap();
        assert!(output.status.success());
    }
    let kept = std::fs::read(place.path("y.png.partial")).unwrap();
    assert_eq!(kept, b"precious");
    assert!(place.path("link.png").is_symlink());
    is_png(&place.path("target.png"));

    let made = Command::new("mkfifo")
        .arg(place.path("q"))
        .status()
        .unwrap();
    assert!(made.success());
    let mut command = place.generate(&words(&["--out", "q"]));
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut bytes = Vec::new();
    let mut fifo = std::fs::File::open(place.path("q")).unwrap();
    fifo.read_to_end(&mut bytes).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(&bytes[1..4], b"PNG");
    assert!(!place.path("q").is_file());
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_is_left() {
    let place = Workplace::new();
    std::os::unix::fs::symlink("s.png", place.path("l.png")).unwrap();
    for (arguments, parts) in [
        (
            &["--out", "s.png", "--report", "s.png"][..],
            ["--report", "--out"],
        ),
        (
            &["--out", "s.png", "--report", "./l.png"],
            ["--report", "--out"],
        ),
        (
            &["--out", "a.png", "--count", "2", "--report", "a-1.png"],
            ["--report", "--out"],
        ),
        (
            &["--out", "a.png", "--save-latents", "a.png"],
            ["--save-latents", "--out"],
        ),
        (&["--out", "x.jpg"], ["--out x.jpg", ".png"]),
        (
            &["--out", "no/x.png"],
            ["no/x.png", "there is no folder no"],
        ),
    ] {
        let output = place.generate(&words(arguments)).output().unwrap();
        refused(&output, &parts);
        assert_eq!(place.names(), ["l.png"]);
    }
    let output = place
        .generate(&words(&["--count", "300000"]))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && stderr.contains("--count"),
        "{stderr}"
    );
    assert_eq!(place.names(), ["l.png"]);
}

#[test]
fn an_output_takes_the_place_of_nothing_that_the_run_reads() {
    let place = Workplace::new();
    std::fs::create_dir(place.path("model")).unwrap();
    let inputs = ["model/model_index.json", "policy.toml", "start.safetensors"];
    for name in inputs {
        std::fs::write(place.path(name), name).unwrap();
    }
    let scheme = ["generate", "a red circle", "--scheme", "local", "--model"];
    for (flag, arguments) in [
        ("--model", &["--report", "model/model_index.json"][..]),
        ("--model", &["--save-latents", "./model/model_index.json"]),
        (
            "--policy",
            &["--policy", "policy.toml", "--report", "./policy.toml"],
        ),
        (
            "--latents",
            &[
                "--latents",
                "start.safetensors",
                "--save-latents",
                "start.safetensors",
            ],
        ),
    ] {
        let mut command = place.lacuna(&scheme);
        let output = command.arg("model").args(arguments).output().unwrap();
        refused(&output, &[flag, arguments.last().unwrap(), "is read"]);
        for name in inputs {
            let left = std::fs::read_to_string(place.path(name)).unwrap();
            assert_eq!(left, name);
        }
    }
}
