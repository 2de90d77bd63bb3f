//! What the program logs on the standard error.

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged where `RUST_LOG` says nothing.
const DEFAULT: &str = "warn,cubecl=error,wgpu=error";

/// Starts logging, as `RUST_LOG` asks; in colours on a terminal, unless `NO_COLOR` is set.
pub fn start() {
    let asked = EnvFilter::try_from_default_env().unwrap_or_else(|_| DEFAULT.into());
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal() && !plain)
        .with_writer(std::io::stderr)
        // A standard error that is full is no reason to end.
        .log_internal_errors(false)
        .with_filter(asked.and(filter_fn(may_be_told)));
    tracing_subscriber::registry().with(lines).init();
}

/// Dependencies do not tell what they work on: the tokenizer's finest lines spell the prompt.
fn may_be_told(line: &Metadata<'_>) -> bool {
    let name = line.target().split("::").next().unwrap_or_default();
    let own = ["worker", "shared"].contains(&name) || name.split('_').next() == Some("lacuna");
    *line.level() <= Level::INFO || own
}
