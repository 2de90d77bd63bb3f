//! The binary from outside: sizes that cannot be are refused in words, before anything is loaded.

use std::process::{Command, Output};

fn worker(arguments: &[&str]) -> Output {
    let mut worker = Command::new(env!("CARGO_BIN_EXE_lacuna-worker"));
    // There is no such model: what comes that far says so.
    worker.args(["--model", "nowhere", "--device", "cpu"]);
    worker.args(["--listen", "127.0.0.1:0"]).args(arguments);
    worker.output().unwrap()
}

#[test]
fn sizes_that_cannot_be_are_refused_by_name() {
    for flag in [
        "--max-rows",
        "--max-columns",
        "--max-batch",
        "--max-sessions",
        "--session-idle",
        "--session-unused",
    ] {
        let too_many = ["10000000000", "18446744073709551616", "-1", "many"];
        // A time may be as long as anybody likes.
        let too_many = &too_many[usize::from(flag.starts_with("--session"))..];
        for value in ["0"].iter().chain(too_many) {
            let output = worker(&[&format!("{flag}={value}")]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{flag} {value}: {said}");
            assert!(said.contains(flag) && said.contains(value), "{said}");
        }
    }
}

#[test]
fn sizes_that_can_be_are_taken() {
    let output = worker(&[
        "--max-rows",
        "256",
        "--session-idle",
        "18446744073709551615",
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("nowhere"), "{said}");
}
