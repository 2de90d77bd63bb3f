//! `lacuna-worker`: serves a U-Net's layers to an orchestrator.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use clap::builder::RangedU64ValueParser;
use lacuna_kernels::allocator::keep_freed_pages;
use lacuna_model::device::{self, DeviceChoice, OpenDevice, Precision};
use lacuna_model::survey::PROMPT_TOKENS;
use lacuna_model::weights::{AdapterFile, Checkpoint};
use lacuna_model::{selftest, speed};
use lacuna_worker::bounds::{MAX_BATCH, MAX_SIDE};
use lacuna_worker::{Model, Options, Service, serve, serve_while_loading};
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Computes layers of a U-Net on strips of feature maps, for a Lacuna orchestrator.
#[derive(Parser)]
#[command(name = "lacuna-worker", version)]
struct Arguments {
    /// A diffusers model directory, or its unet/ alone.
    #[arg(long, env = "LACUNA_MODEL", required_unless_present = "self_test")]
    model: Option<PathBuf>,
    /// Only open the device, hold it against the CPU, and say how it did.
    #[arg(long)]
    self_test: bool,
    /// Weight file variant, e.g. fp16.
    #[arg(long, env = "LACUNA_VARIANT")]
    variant: Option<String>,
    /// A low-rank adapter of the U-Net (LoRA), with its strength behind a colon if that is not 1; repeat it for several.
    /// Whoever computes here must give the same.
    #[arg(long, env = "LACUNA_LORA", value_name = "FILE[:STRENGTH]")]
    lora: Vec<AdapterFile>,
    /// Where to listen.
    #[arg(long, env = "LACUNA_LISTEN", default_value = "127.0.0.1:7700")]
    listen: SocketAddr,
    /// auto, cpu or wgpu.
    #[arg(long, env = "LACUNA_DEVICE", default_value_t)]
    device: DeviceChoice,
    /// Number type of the weights and of what is computed: f32 or f16. f16 halves the memory and is for GPUs.
    #[arg(long, env = "LACUNA_PRECISION", default_value_t)]
    precision: Precision,
    /// Accept a GPU that is emulated in software (llvmpipe).
    #[arg(long, env = "LACUNA_ALLOW_SOFTWARE")]
    allow_software: bool,
    /// What orchestrators must present. Without one, anybody who reaches the port may compute.
    #[arg(long, env = "LACUNA_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Rows of latents at most (height / 8 for Stable Diffusion).
    #[arg(long, env = "LACUNA_WORKER_MAX_ROWS", default_value_t = 128, value_parser = one_to(MAX_SIDE))]
    max_rows: usize,
    /// Columns of latents at most.
    #[arg(long, env = "LACUNA_WORKER_MAX_COLUMNS", default_value_t = 128, value_parser = one_to(MAX_SIDE))]
    max_columns: usize,
    /// Batch entries at most; guidance takes two.
    #[arg(long, env = "LACUNA_WORKER_MAX_BATCH", default_value_t = 2, value_parser = one_to(MAX_BATCH))]
    max_batch: usize,
    /// Pictures at a time.
    #[arg(long, env = "LACUNA_MAX_SESSIONS", default_value_t = 16, value_parser = one_to(MAX_SESSIONS))]
    max_sessions: usize,
    /// Close a session that is idle for so many seconds.
    #[arg(long, env = "LACUNA_SESSION_IDLE", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    session_idle: u64,
    /// Close a session that nobody has used for so many seconds after it was opened.
    #[arg(long, env = "LACUNA_SESSION_UNUSED", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    session_unused: u64,
    /// On SIGTERM, wait so many seconds for open sessions to end.
    #[arg(long, env = "LACUNA_DRAIN", default_value_t = 30)]
    drain: u64,
}

/// Most pictures at a time; each has threads and memory of its own.
const MAX_SESSIONS: usize = 4096;

/// A number from 1 to `most`.
fn one_to(most: usize) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=most as u64)
}

#[tokio::main]
async fn main() -> ExitCode {
    keep_freed_pages();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "info,cubecl=warn,wgpu=warn".into()),
        )
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr)
        // A standard error that is full is no reason to end.
        .log_internal_errors(false)
        .init();
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where nobody can be told, nobody is.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.self_test {
        let (device, report) = open_device(&arguments)?;
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{} {}: {report}", device.kind, device.adapter)?;
        write!(stdout, "{}", report.table())?;
        return Ok(());
    }
    let stop = shutdown_signal().context("cannot listen for signals")?;
    let listener = TcpListener::bind(arguments.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; give another --listen",
            arguments.listen
        )
    })?;
    let address = listener.local_addr()?;
    let drain = Duration::from_secs(arguments.drain);
    // A second handle on the same socket, so that no connection is lost between the two servers.
    let socket = listener.into_std()?;
    let loading = TcpListener::from_std(socket.try_clone()?)?;
    let listener = TcpListener::from_std(socket)?;
    let prepared = tokio::task::spawn_blocking(move || prepare(arguments));
    let mut stop = Box::pin(stop);
    let service = tokio::select! {
        service = serve_while_loading(loading, prepared) => service???,
        // What reads and loads is of no use to anybody, and would be waited for.
        () = &mut stop => std::process::exit(0),
    };
    tracing::info!("ready on http://{address}");
    serve(listener, service, stop, drain).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Opens the device and holds it against the CPU.
fn open_device(arguments: &Arguments) -> anyhow::Result<(OpenDevice, selftest::Report)> {
    let device = device::open(arguments.device, arguments.allow_software)?;
    tracing::info!(device = device.kind, adapter = device.adapter, "device");
    anyhow::ensure!(
        arguments.precision == Precision::F32 || device.kind != "cpu",
        "--precision {} needs a GPU; the CPU computes in f32",
        arguments.precision
    );
    let report = selftest::run(&device, arguments.precision)?;
    Ok((device, report))
}

/// Opens and tests the device and loads the model.
fn prepare(arguments: Arguments) -> anyhow::Result<Service> {
    let (device, report) = open_device(&arguments)?;
    tracing::info!("self-test: {report}");
    let target = (&device.device, arguments.precision);
    // clap has seen to it that there is a model unless only the self-test is wanted.
    let model = arguments.model.context("no --model")?;
    let nested = model.join("unet");
    let within = |dir: &Path| dir.join("config.json").is_file();
    anyhow::ensure!(
        within(&nested) || within(&model),
        "there is no U-Net in {0}: neither {0}/unet/config.json nor {0}/config.json; give --model",
        model.display()
    );
    let dir = if within(&nested) { nested } else { model };
    if let Some(variant) = &arguments.variant {
        anyhow::ensure!(
            Checkpoint::has_variant(&dir, variant),
            "--variant {variant}: there are no such files in {}; leave it out",
            dir.display()
        );
    }
    let model = Model::load(&dir, arguments.variant.as_deref(), &arguments.lora, target)
        .with_context(|| format!("cannot load the U-Net in {}", dir.display()))?;
    tracing::info!(
        parameters = model.parameters(),
        digest = &model.digest()[..12],
        "loaded {}",
        dir.display()
    );
    let max_latents = [
        arguments.max_batch,
        arguments.max_rows,
        arguments.max_columns,
    ];
    let gflops = speed::gflops(model.unet(), max_latents, PROMPT_TOKENS, target)?;
    tracing::info!("{gflops:.0} GFLOP/s");
    if arguments.token.is_none() {
        tracing::warn!("no --token: anybody who reaches this port may compute");
    }
    let options = Options {
        token: arguments.token,
        max_latents,
        max_sessions: arguments.max_sessions,
        session_idle: Duration::from_secs(arguments.session_idle),
        session_unused: Duration::from_secs(arguments.session_unused),
        gflops: Some(gflops),
    };
    Ok(Service::new(Arc::new(model), &device, &options)?)
}

/// Completes on SIGTERM or interrupt.
fn shutdown_signal() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("draining");
    })
}
