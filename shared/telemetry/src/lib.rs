//! What the programs tell while they run: a log on the standard error, and spans for a collector where the build has the
//! feature `otel` and somebody names one.
//!
//! - [`start`], [`finish`]: around a program.
//! - `collector`: spans, sent by OpenTelemetry's protocol.
//! - [`error`]: everything that can go wrong.
#![forbid(unsafe_code)]

#[cfg(feature = "otel")]
mod collector;
pub mod error;

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

pub use error::{Error, Result};

/// Variables that name a collector, the narrower one first.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// How a program tells.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// What a collector knows it by.
    pub name: &'static str,
    /// What is logged where `RUST_LOG` says nothing.
    pub default: &'static str,
    /// What dependencies may log at most.
    pub dependencies: Level,
    /// Whether a line of the log is an object.
    pub json: bool,
}

/// Some layer of what is told.
type Told = Box<dyn Layer<Registry> + Send + Sync>;

/// Begins to log, as `RUST_LOG` asks, in colours on a terminal unless `NO_COLOR` is set; and to send spans, if a collector is named.
///
/// # Errors
/// Those of the collector.
pub fn start(program: &Program) -> Result<()> {
    let asked = EnvFilter::try_from_default_env().unwrap_or_else(|_| program.default.into());
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let most = program.dependencies;
    let filter = asked.and(filter_fn(move |line| is_own(line) || *line.level() <= most));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal() && !plain)
        .with_writer(std::io::stderr)
        // A standard error that is full is no reason to end.
        .log_internal_errors(false);
    let lines: Told = match program.json {
        true => lines.json().with_filter(filter).boxed(),
        false => lines.with_filter(filter).boxed(),
    };
    let mut all = vec![lines];
    all.extend(spans(program.name)?);
    tracing_subscriber::registry().with(all).init();
    if let Some(name) = ENDPOINTS.iter().find(|name| is_set(name)) {
        if cfg!(feature = "otel") {
            tracing::info!("spans go to the collector of {name}");
        } else {
            tracing::info!("{name}: this build sends no spans; build with --features otel");
        }
    }
    Ok(())
}

/// Sends what is left to send. To be called before a program ends; it takes some seconds at most.
pub fn finish() {
    #[cfg(feature = "otel")]
    collector::finish();
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

#[cfg(feature = "otel")]
fn spans(name: &'static str) -> Result<Option<Told>> {
    collector::spans(name)
}

#[cfg(not(feature = "otel"))]
fn spans(_: &'static str) -> Result<Option<Told>> {
    Ok(None)
}

/// Whether this project says it.
fn is_own(line: &Metadata<'_>) -> bool {
    let name = line.target().split("::").next().unwrap_or_default();
    ["worker", "shared"].contains(&name) || name.split('_').next() == Some("lacuna")
}
