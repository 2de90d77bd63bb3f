//! `lacuna-worker`: serves a U-Net's layers to an orchestrator.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use burn::tensor::Device;
use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use clap::{Args, Parser, ValueEnum};
use lacuna_channel::Pin;
use lacuna_channel::identity::Identity;
use lacuna_channel::server::{Files, Server};
use lacuna_kernels::allocator::keep_freed_pages;
use lacuna_model::device::{self, DeviceChoice, OpenDevice, Precision};
use lacuna_model::survey::PROMPT_TOKENS;
use lacuna_model::weights::{AdapterFile, Checkpoint};
use lacuna_model::{selftest, speed};
use lacuna_worker::bounds::{MAX_BATCH, MAX_SIDE};
use lacuna_worker::store::size::Size;
use lacuna_worker::tokens::Secret;
use lacuna_worker::{Door, Model, Options, Service, serve, serve_while_loading, watch};
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Computes layers of a U-Net on strips of feature maps, for a Lacuna orchestrator.
#[derive(Parser)]
#[command(name = "lacuna-worker", version)]
struct Arguments {
    /// A diffusers model directory, its unet/ alone, or a model's one file (.safetensors). With --store it may be left out.
    #[arg(long, env = "LACUNA_MODEL", required_unless_present_any = ["self_test", "store"])]
    model: Option<PathBuf>,
    /// Of a model in one file: a model directory of the same kind, whose unet/config.json is taken [default: what the
    /// file's tensors tell].
    #[arg(
        long,
        value_name = "DIR",
        env = "LACUNA_MODEL_CONFIG",
        requires = "model"
    )]
    model_config: Option<PathBuf>,
    /// Only open the device, hold it against the CPU, and say how it did.
    #[arg(long)]
    self_test: bool,
    /// Weight file variant, e.g. fp16.
    #[arg(long, env = "LACUNA_VARIANT")]
    variant: Option<String>,
    /// A low-rank adapter of the U-Net (LoRA), with its strength behind a colon if that is not 1; repeat it for several.
    /// Whoever computes here must give the same. Of --model alone: models of --store have none.
    #[arg(
        long,
        env = "LACUNA_LORA",
        value_name = "FILE[:STRENGTH]",
        requires = "model"
    )]
    lora: Vec<AdapterFile>,
    /// Take models that are pushed here, and keep them in this folder. One at a time is loaded, when a picture asks for it.
    #[arg(long, env = "LACUNA_STORE", value_name = "DIR")]
    store: Option<PathBuf>,
    /// Bytes of --store at most, with a unit or without; whichever model was not used for longest makes room.
    #[arg(
        long,
        env = "LACUNA_STORE_SIZE",
        value_name = "SIZE",
        default_value = "20GB"
    )]
    store_size: Size,
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
    /// What orchestrators must present. Without this and --token-file, anybody who reaches the port may compute.
    #[arg(long, env = "LACUNA_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Let whoever presents --token push models to --store and remove them.
    #[arg(long, env = "LACUNA_TOKEN_PUSHES", requires_all = ["token", "store"], value_parser = BoolishValueParser::new())]
    token_pushes: bool,
    /// A file of such tokens, one a line, with `push` behind those that may push and remove models; it is read again when it
    /// changes.
    #[arg(long, env = "LACUNA_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Where Prometheus finds /metrics, and others /health/live and /health/ready: an address of its own, in plain.
    #[arg(long, env = "LACUNA_METRICS", value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// text or json.
    #[arg(
        long,
        env = "LACUNA_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    log_format: LogFormat,
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
    /// Pictures at a time of those who show one token [default: as many as --max-sessions].
    #[arg(long, env = "LACUNA_MAX_SESSIONS_EACH", value_parser = one_to(MAX_SESSIONS))]
    max_sessions_each: Option<usize>,
    /// Close a session that is idle for so many seconds.
    #[arg(long, env = "LACUNA_SESSION_IDLE", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    session_idle: u64,
    /// Close a session that nobody has used for so many seconds after it was opened.
    #[arg(long, env = "LACUNA_SESSION_UNUSED", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    session_unused: u64,
    /// Close a session so many seconds after it was opened, whatever is done in it.
    #[arg(long, env = "LACUNA_SESSION_TOTAL", default_value_t = 24 * 3600, value_parser = clap::value_parser!(u64).range(1..))]
    session_total: u64,
    /// Have a picture wait for a place for so many seconds, in turn.
    #[arg(long, env = "LACUNA_SESSION_WAIT", default_value_t = 20)]
    session_wait: u64,
    /// On SIGTERM, wait so many seconds for open sessions to end.
    #[arg(long, env = "LACUNA_DRAIN", default_value_t = 30)]
    drain: u64,
    #[command(flatten)]
    channel: Channel,
}

/// The private channel: TLS 1.3.
#[derive(Args)]
#[command(next_help_heading = "Channel")]
struct Channel {
    /// A folder with the worker's own certificate, key and tokens. What is missing is made, and what a fleet file needs of it is
    /// printed.
    #[arg(long, env = "LACUNA_IDENTITY", value_name = "DIR", conflicts_with_all = ["tls_cert", "tls_key", "token_file"])]
    identity: Option<PathBuf>,
    /// Print what a fleet file needs of --identity, with its token, also where the output is no terminal.
    #[arg(long, requires = "identity")]
    entry: bool,
    /// The name or address that others reach this machine by [default: that of --listen].
    #[arg(long, env = "LACUNA_NAME", value_name = "HOST")]
    name: Option<String>,
    /// A certificate in PEM, with those between it and an authority's; it is read again when it changes.
    #[arg(
        long,
        env = "LACUNA_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,
    /// Its private key in PEM.
    #[arg(
        long,
        env = "LACUNA_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,
    /// Authorities in PEM, of which whoever connects must have a certificate.
    #[arg(long, env = "LACUNA_CLIENT_CA", value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// Listen in plain on an address that others reach: whoever is on the way sees tokens and features.
    #[arg(long, env = "LACUNA_INSECURE", value_parser = BoolishValueParser::new())]
    insecure: bool,
}

/// How the log is written, to the standard error.
#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For a person.
    Text,
    /// An object a line.
    Json,
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
    let arguments = Arguments::parse();
    let log = tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "info,cubecl=warn,wgpu=warn".into()),
        )
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr)
        // A standard error that is full is no reason to end.
        .log_internal_errors(false);
    match arguments.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    match run(arguments).await {
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
    let mut arguments = arguments;
    let channel = arguments.channel()?;
    let listener = TcpListener::bind(arguments.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; give another --listen",
            arguments.listen
        )
    })?;
    let address = listener.local_addr()?;
    if let Some(channel) = &channel {
        tracing::info!("TLS by the public key {}", channel.pin());
        arguments.introduce(address, channel.pin())?;
    }
    let known = Arc::new(OnceLock::new());
    if let Some(address) = arguments.metrics {
        let counted = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address} for metrics; give another --metrics")
        })?;
        tracing::info!("metrics on http://{}/metrics", counted.local_addr()?);
        tokio::spawn(watch(counted, known.clone()));
    }
    let drain = Duration::from_secs(arguments.drain);
    // A second handle on the same socket, so that no connection is lost between the two servers.
    let socket = listener.into_std()?;
    let door = |socket| {
        Ok::<_, std::io::Error>(Door::new(TcpListener::from_std(socket)?, channel.clone()))
    };
    let (loading, door) = (door(socket.try_clone()?)?, door(socket)?);
    let prepared = tokio::task::spawn_blocking(move || prepare(arguments));
    let mut stop = Box::pin(stop);
    let service = tokio::select! {
        service = serve_while_loading(loading, prepared) => service??,
        // What reads and loads is of no use to anybody, and would be waited for.
        () = &mut stop => std::process::exit(0),
    };
    let _ = known.set(service.clone());
    let scheme = if channel.is_some() { "https" } else { "http" };
    tracing::info!("ready on {scheme}://{address}");
    serve(door, service, stop, drain).await;
    tracing::info!("stopped");
    Ok(())
}

impl Arguments {
    /// The private channel that was asked for; none where plain HTTP is good enough.
    fn channel(&mut self) -> anyhow::Result<Option<Arc<Server>>> {
        let channel = &self.channel;
        let files = match (&channel.identity, &channel.tls_cert, &channel.tls_key) {
            (Some(dir), ..) => {
                let names = [self.host().unwrap_or_else(|| "localhost".into())];
                let identity = Identity::at(dir, &names)?;
                self.token_file = Some(identity.tokens);
                Some(identity.files)
            }
            (None, Some(certificate), Some(key)) => Some(Files {
                certificate: certificate.clone(),
                key: key.clone(),
                client_authorities: None,
            }),
            _ => None,
        };
        let Some(files) = files else {
            let away = !self.listen.ip().to_canonical().is_loopback();
            anyhow::ensure!(
                self.channel.client_ca.is_none(),
                "--client-ca needs a channel: give --identity, or --tls-cert and --tls-key"
            );
            anyhow::ensure!(
                self.channel.insecure || !away,
                "--listen {}: others reach it, and whoever is on the way would see tokens and features; give --identity DIR, or \
                 --tls-cert and --tls-key, or --insecure where something else sees to it",
                self.listen
            );
            return Ok(None);
        };
        let client_authorities = self.channel.client_ca.clone();
        let files = Files {
            client_authorities,
            ..files
        };
        Ok(Some(Arc::new(Server::new(files)?)))
    }

    /// What others reach this machine by, as far as that is known.
    fn host(&self) -> Option<String> {
        let ip = self.listen.ip();
        let own = (!ip.is_unspecified()).then(|| ip.to_string());
        self.channel.name.clone().or(own)
    }

    /// Prints what a fleet file needs, where somebody reads it: it holds a token, which is for no log.
    fn introduce(&self, address: SocketAddr, pin: Pin) -> anyhow::Result<()> {
        let (Some(_), Some(tokens)) = (&self.channel.identity, &self.token_file) else {
            return Ok(());
        };
        let mut stdout = std::io::stdout();
        if !stdout.is_terminal() && !self.channel.entry {
            tracing::info!(
                "--entry prints what a fleet file needs, and the token in {}",
                tokens.display()
            );
            return Ok(());
        }
        let host = self.host().unwrap_or_else(|| "THIS-MACHINE".into());
        let entry = Identity::entry(tokens, pin, &host, address.port())?;
        write!(stdout, "{entry}")?;
        stdout.flush()?;
        Ok(())
    }
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

/// Opens and tests the device, and loads the model if there is one.
fn prepare(arguments: Arguments) -> anyhow::Result<Service> {
    let (device, report) = open_device(&arguments)?;
    tracing::info!("self-test: {report}");
    let target = (&device.device, arguments.precision);
    let max_latents = [
        arguments.max_batch,
        arguments.max_rows,
        arguments.max_columns,
    ];
    let model = arguments.model.as_ref();
    let model = model.map(|model| load(model, &arguments, target));
    let model = model.transpose()?;
    let gflops = match &model {
        Some(model) => {
            if let Err(reason) = model.check_shares(arguments.precision) {
                tracing::warn!("no shares are multiplied here: {reason}");
            }
            let gflops = speed::gflops(model.unet(), max_latents, PROMPT_TOKENS, target)?;
            tracing::info!("{gflops:.0} GFLOP/s");
            Some(gflops)
        }
        None => None,
    };
    if arguments.token.is_none() && arguments.token_file.is_none() {
        tracing::warn!("no --token: anybody who reaches this port may compute");
        if arguments.store.is_some() {
            tracing::warn!("no --token: nobody may push models to --store");
        }
    }
    let options = Options {
        token: arguments.token.map(Secret),
        token_pushes: arguments.token_pushes,
        token_file: arguments.token_file,
        max_latents,
        max_sessions: arguments.max_sessions,
        session_idle: Duration::from_secs(arguments.session_idle),
        session_unused: Duration::from_secs(arguments.session_unused),
        session_total: Duration::from_secs(arguments.session_total),
        session_wait: Duration::from_secs(arguments.session_wait),
        max_sessions_each: arguments.max_sessions_each,
        gflops,
        precision: arguments.precision,
        store: arguments.store.map(|dir| (dir, arguments.store_size.0)),
    };
    Ok(Service::new(model.map(Arc::new), &device, &options)?)
}

/// Loads the U-Net of the folder `model`, or of its `unet/`, or of the one file that it is.
fn load(
    model: &Path,
    arguments: &Arguments,
    target: (&Device, Precision),
) -> anyhow::Result<Model> {
    if model.is_file() {
        let config = arguments.model_config.as_ref();
        let config = config.map(|dir| dir.join("unet/config.json"));
        let loaded = Model::load_one_file(model, config.as_deref(), &arguments.lora, target);
        return loaded.with_context(|| format!("cannot load the U-Net in {}", model.display()));
    }
    let nested = model.join("unet");
    let within = |dir: &Path| dir.join("config.json").is_file();
    anyhow::ensure!(
        within(&nested) || within(model),
        "there is no U-Net in {0}: neither {0}/unet/config.json nor {0}/config.json; give --model",
        model.display()
    );
    let dir = match within(&nested) {
        true => nested,
        false => model.to_owned(),
    };
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
    Ok(model)
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
