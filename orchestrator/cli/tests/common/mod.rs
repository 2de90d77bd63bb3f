//! What the tests of the binary share.

use std::process::Command;

/// The binary with nothing of ours in its environment.
pub(crate) fn lacuna() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LACUNA_")
            || name.to_string_lossy().starts_with("OTEL_")
            || name == "RUST_LOG"
        {
            command.env_remove(name);
        }
    }
    command
}
