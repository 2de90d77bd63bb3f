//! What the program is told when it starts.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use lacuna_channel::Pin;
use lacuna_channel::identity::Identity;
use lacuna_channel::server::{Files, Server};
use lacuna_model::device::{DeviceChoice, Precision};
use lacuna_model::weights::AdapterFile;
use lacuna_worker::bounds::{MAX_BATCH, MAX_SIDE};
use lacuna_worker::doctor::Asked;
use lacuna_worker::store::size::Size;

/// Computes layers of a U-Net on strips of feature maps, for a Lacuna orchestrator.
#[derive(Parser)]
#[command(name = "lacuna-worker", version, subcommand_negates_reqs = true)]
#[command(group = ArgGroup::new("what").args(["model", "store", "self_test"]).required(true).multiple(true))]
pub(crate) struct Arguments {
    /// What to do, if not to serve.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Only open the device, hold it against the CPU, and say how it did.
    #[arg(long)]
    pub(crate) self_test: bool,
    /// Weight file variant, e.g. fp16.
    #[arg(long, env = "LACUNA_VARIANT")]
    pub(crate) variant: Option<String>,
    /// A low-rank adapter (LoRA), with its strength behind a colon if that is not 1; repeat it for several. What of it is of
    /// text encoders is passed over. Whoever computes here must give the same. Of --model alone: models of --store have none.
    #[arg(
        long,
        env = "LACUNA_LORA",
        value_name = "FILE[:STRENGTH]",
        requires = "model"
    )]
    pub(crate) lora: Vec<AdapterFile>,
    /// Bytes of --store at most, with a unit or without; whichever model was not used for longest makes room.
    #[arg(
        long,
        env = "LACUNA_STORE_SIZE",
        value_name = "SIZE",
        default_value = "20GB"
    )]
    pub(crate) store_size: Size,
    /// What orchestrators must present. Without this and --token-file, anybody who reaches the port may compute.
    #[arg(long, env = "LACUNA_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Let whoever presents --token push models to --store and remove them.
    #[arg(long, env = "LACUNA_TOKEN_PUSHES", requires_all = ["token", "store"], value_parser = BoolishValueParser::new())]
    pub(crate) token_pushes: bool,
    /// text or json.
    #[arg(
        long,
        env = "LACUNA_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    pub(crate) log_format: LogFormat,
    /// Rows of latents at most (height / 8 for Stable Diffusion).
    #[arg(long, env = "LACUNA_WORKER_MAX_ROWS", default_value_t = 128, value_parser = one_to(MAX_SIDE))]
    pub(crate) max_rows: usize,
    /// Columns of latents at most.
    #[arg(long, env = "LACUNA_WORKER_MAX_COLUMNS", default_value_t = 128, value_parser = one_to(MAX_SIDE))]
    pub(crate) max_columns: usize,
    /// Batch entries at most; guidance takes two.
    #[arg(long, env = "LACUNA_WORKER_MAX_BATCH", default_value_t = 2, value_parser = one_to(MAX_BATCH))]
    pub(crate) max_batch: usize,
    /// Pictures at a time.
    #[arg(long, env = "LACUNA_MAX_SESSIONS", default_value_t = 16, value_parser = one_to(MAX_SESSIONS))]
    pub(crate) max_sessions: usize,
    /// Pictures at a time of those who show one token [default: as many as --max-sessions].
    #[arg(long, env = "LACUNA_MAX_SESSIONS_EACH", value_parser = one_to(MAX_SESSIONS))]
    pub(crate) max_sessions_each: Option<usize>,
    /// Close a session that is idle for so many seconds.
    #[arg(long, env = "LACUNA_SESSION_IDLE", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) session_idle: u64,
    /// Close a session that nobody has used for so many seconds after it was opened.
    #[arg(long, env = "LACUNA_SESSION_UNUSED", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) session_unused: u64,
    /// Close a session so many seconds after it was opened, whatever is done in it.
    #[arg(long, env = "LACUNA_SESSION_TOTAL", default_value_t = 24 * 3600, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) session_total: u64,
    /// Have a picture wait for a place for so many seconds, in turn.
    #[arg(long, env = "LACUNA_SESSION_WAIT", default_value_t = 20)]
    pub(crate) session_wait: u64,
    /// On SIGTERM, wait so many seconds for open sessions to end.
    #[arg(long, env = "LACUNA_DRAIN", default_value_t = 30)]
    pub(crate) drain: u64,
}

/// What to do, if not to serve.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Say what this machine has for a worker that is started with the same flags, what it lacks, and how to mend that. Ends with 0
    /// if the worker could serve.
    Doctor(Doctor),
}

/// What the doctor looks at.
#[derive(Args)]
pub(crate) struct Doctor {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    place: Place,
}

impl Doctor {
    /// As the doctor asks for it.
    pub(crate) fn asked(&self) -> Asked {
        let place = &self.place;
        let channel = &place.channel;
        let tls = channel.tls_cert.clone().zip(channel.tls_key.clone());
        let metrics = place.metrics.map(|address| ("--metrics", address));
        let refused = match place.is_private() {
            true => None,
            false => place.check_plain().err(),
        };
        Asked {
            device: place.device,
            precision: place.precision,
            allow_software: place.allow_software,
            model: place.model.clone(),
            model_config: place.model_config.clone(),
            store: place.store.clone(),
            identity: channel.identity.clone(),
            tls: tls.map(Into::into),
            client_authorities: channel.client_ca.clone(),
            token_file: place.token_file.clone(),
            addresses: [("--listen", place.listen)]
                .into_iter()
                .chain(metrics)
                .collect(),
            refused: refused.map(|error| error.to_string()),
        }
    }
}

/// What must be there for a worker: files, addresses, a device.
#[derive(Args)]
pub(crate) struct Place {
    /// A diffusers model directory, its unet/ alone, or a model's one file (.safetensors). With --store it may be left out.
    #[arg(long, env = "LACUNA_MODEL")]
    pub(crate) model: Option<PathBuf>,
    /// Of a model in one file: a model directory of the same kind, whose unet/config.json is taken [default: what the
    /// file's tensors tell].
    #[arg(
        long,
        value_name = "DIR",
        env = "LACUNA_MODEL_CONFIG",
        requires = "model"
    )]
    pub(crate) model_config: Option<PathBuf>,
    /// Take models that are pushed here, and keep them in this folder. One at a time is loaded, when a picture asks for it.
    #[arg(long, env = "LACUNA_STORE", value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Where to listen.
    #[arg(long, env = "LACUNA_LISTEN", default_value = "127.0.0.1:7700")]
    pub(crate) listen: SocketAddr,
    /// auto, cpu, wgpu or cuda; auto is cuda or wgpu where this build and machine have it.
    #[arg(long, env = "LACUNA_DEVICE", default_value_t)]
    pub(crate) device: DeviceChoice,
    /// Number type of the weights and of what is computed: f32 or f16. f16 halves the memory and is for GPUs.
    #[arg(long, env = "LACUNA_PRECISION", default_value_t)]
    pub(crate) precision: Precision,
    /// Accept a GPU that is emulated in software (llvmpipe).
    #[arg(long, env = "LACUNA_ALLOW_SOFTWARE")]
    pub(crate) allow_software: bool,
    /// A file of tokens, one a line, with `push` behind those that may push and remove models; it is read again when it
    /// changes.
    #[arg(long, env = "LACUNA_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Where Prometheus finds /metrics, and others /health/live and /health/ready: an address of its own, in plain.
    #[arg(long, env = "LACUNA_METRICS", value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) channel: Channel,
}

/// The private channel: TLS 1.3.
#[derive(Args)]
#[command(next_help_heading = "Channel")]
pub(crate) struct Channel {
    /// A folder with the worker's own certificate, key and tokens. What is missing is made, and what a fleet file needs of it is
    /// printed.
    #[arg(long, env = "LACUNA_IDENTITY", value_name = "DIR", conflicts_with_all = ["tls_cert", "tls_key", "token_file"])]
    pub(crate) identity: Option<PathBuf>,
    /// Print what a fleet file needs of --identity, with its token, also where the output is no terminal.
    #[arg(long, requires = "identity")]
    pub(crate) entry: bool,
    /// The name or address that others reach this machine by [default: that of --listen].
    #[arg(long, env = "LACUNA_NAME", value_name = "HOST")]
    pub(crate) name: Option<String>,
    /// A certificate in PEM, with those between it and an authority's; it is read again when it changes.
    #[arg(
        long,
        env = "LACUNA_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key in PEM.
    #[arg(
        long,
        env = "LACUNA_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub(crate) tls_key: Option<PathBuf>,
    /// Authorities in PEM, of which whoever connects must have a certificate.
    #[arg(long, env = "LACUNA_CLIENT_CA", value_name = "FILE")]
    pub(crate) client_ca: Option<PathBuf>,
    /// Listen in plain on an address that others reach: whoever is on the way sees tokens and features.
    #[arg(long, env = "LACUNA_INSECURE", value_parser = BoolishValueParser::new())]
    pub(crate) insecure: bool,
}

/// How the log is written, to the standard error.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
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

impl Place {
    /// The private channel that was asked for; none where plain HTTP is good enough.
    pub(crate) fn channel(&mut self) -> anyhow::Result<Option<Arc<Server>>> {
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
            self.check_plain()?;
            return Ok(None);
        };
        let client_authorities = self.channel.client_ca.clone();
        let files = Files {
            client_authorities,
            ..files
        };
        Ok(Some(Arc::new(Server::new(files)?)))
    }

    /// Whether there is to be TLS.
    fn is_private(&self) -> bool {
        self.channel.identity.is_some() || self.channel.tls_cert.is_some()
    }

    /// Whether plain HTTP is good enough where it listens.
    fn check_plain(&self) -> anyhow::Result<()> {
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
        Ok(())
    }

    /// What others reach this machine by, as far as that is known.
    fn host(&self) -> Option<String> {
        let ip = self.listen.ip();
        let own = (!ip.is_unspecified()).then(|| ip.to_string());
        self.channel.name.clone().or(own)
    }

    /// Prints what a fleet file needs, where somebody reads it: it holds a token, which is for no log.
    pub(crate) fn introduce(&self, address: SocketAddr, pin: Pin) -> anyhow::Result<()> {
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
