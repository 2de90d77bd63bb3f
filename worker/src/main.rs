//! `lacuna-worker`: serves a U-Net's layers to an orchestrator.
#![forbid(unsafe_code)]

mod arguments;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use arguments::{Arguments, Command, Doctor, LogFormat, Place};
use burn::tensor::Device;
use clap::Parser;
use lacuna_kernels::allocator::keep_freed_pages;
use lacuna_model::device::{self, DeviceChoice, OpenDevice, Precision};
use lacuna_model::survey::PROMPT_TOKENS;
use lacuna_model::weights::Checkpoint;
use lacuna_model::{selftest, speed};
use lacuna_telemetry::Program;
use lacuna_worker::doctor::{Machine, examine};
use lacuna_worker::tokens::Secret;
use lacuna_worker::{Door, Model, Options, Service, model, serve, serve_while_loading, watch};
use tokio::net::TcpListener;
use tracing::Level;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    keep_freed_pages();
    let arguments = Arguments::parse();
    let told = Program {
        name: "lacuna-worker",
        default: "info,cubecl=warn,wgpu=warn",
        dependencies: Level::TRACE,
        json: matches!(arguments.log_format, LogFormat::Json),
    };
    let result = match lacuna_telemetry::start(&told) {
        Ok(()) => run(arguments).await,
        Err(error) => Err(error.into()),
    };
    lacuna_telemetry::finish();
    match result {
        Ok(code) => code,
        Err(error) => {
            // Where nobody can be told, nobody is.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Some(Command::Doctor(doctor)) = &arguments.command {
        return look(doctor);
    }
    if arguments.self_test {
        let (device, report) = open_device(&arguments)?;
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{} {}: {report}", device.kind, device.adapter)?;
        write!(stdout, "{}", report.table())?;
        return Ok(ExitCode::SUCCESS);
    }
    let stop = shutdown_signal().context("cannot listen for signals")?;
    let mut arguments = arguments;
    let channel = arguments.place.channel()?;
    let listener = TcpListener::bind(arguments.place.listen)
        .await
        .with_context(|| {
            format!(
                "cannot listen on {}; give another --listen",
                arguments.place.listen
            )
        })?;
    let address = listener.local_addr()?;
    if let Some(channel) = &channel {
        tracing::info!("TLS by the public key {}", channel.pin());
        arguments.place.introduce(address, channel.pin())?;
    }
    let known = Arc::new(OnceLock::new());
    if let Some(address) = arguments.place.metrics {
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
    Ok(ExitCode::SUCCESS)
}

/// Prints what this machine has for a worker, and lacks.
fn look(doctor: &Doctor) -> anyhow::Result<ExitCode> {
    let report = examine(&doctor.asked(), &Machine::this());
    let mut stdout = std::io::stdout();
    match doctor.json {
        true => writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?,
        false => write!(stdout, "{report}")?,
    }
    Ok(match report.serves {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Opens the device and holds it against the CPU.
fn open_device(arguments: &Arguments) -> anyhow::Result<(OpenDevice, selftest::Report)> {
    let Place {
        device: choice,
        precision,
        allow_software,
        ..
    } = arguments.place;
    let device = device::open(choice, allow_software).map_err(|error| {
        anyhow::anyhow!("{error}; `lacuna-worker doctor` says what this machine lacks")
    })?;
    tracing::info!(device = device.kind, adapter = device.adapter, "device");
    let mut gpus = [DeviceChoice::Wgpu, DeviceChoice::Cuda].into_iter();
    if choice == DeviceChoice::Auto && device.kind == "cpu" && gpus.any(DeviceChoice::is_built) {
        tracing::info!("no GPU is used: `lacuna-worker doctor` says why");
    }
    let report = selftest::run(&device, precision)?;
    Ok((device, report))
}

/// Opens and tests the device, and loads the model if there is one.
fn prepare(arguments: Arguments) -> anyhow::Result<Service> {
    let (device, report) = open_device(&arguments)?;
    tracing::info!("self-test: {report}");
    let target = (&device.device, arguments.place.precision);
    let max_latents = [
        arguments.max_batch,
        arguments.max_rows,
        arguments.max_columns,
    ];
    let model = arguments.place.model.as_ref();
    let model = model.map(|model| load(model, &arguments, target));
    let model = model.transpose()?;
    let gflops = match &model {
        Some(model) => {
            if let Err(reason) = model.check_shares(arguments.place.precision) {
                tracing::warn!("no shares are multiplied here: {reason}");
            }
            let gflops = speed::gflops(model.unet(), max_latents, PROMPT_TOKENS, target)?;
            tracing::info!("{gflops:.0} GFLOP/s");
            Some(gflops)
        }
        None => None,
    };
    if arguments.token.is_none() && arguments.place.token_file.is_none() {
        tracing::warn!("no --token: anybody who reaches this port may compute");
        if arguments.place.store.is_some() {
            tracing::warn!("no --token: nobody may push models to --store");
        }
    }
    let options = Options {
        token: arguments.token.map(Secret),
        token_pushes: arguments.token_pushes,
        token_file: arguments.place.token_file,
        max_latents,
        max_sessions: arguments.max_sessions,
        session_idle: Duration::from_secs(arguments.session_idle),
        session_unused: Duration::from_secs(arguments.session_unused),
        session_total: Duration::from_secs(arguments.session_total),
        session_wait: Duration::from_secs(arguments.session_wait),
        max_sessions_each: arguments.max_sessions_each,
        gflops,
        precision: arguments.place.precision,
        store: arguments
            .place
            .store
            .map(|dir| (dir, arguments.store_size.0)),
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
        anyhow::ensure!(
            arguments.variant.is_none(),
            "--variant is for a model's folder; a model in one file has no others"
        );
        let config = arguments.place.model_config.as_ref();
        let config = config.map(|dir| dir.join("unet/config.json"));
        let loaded = Model::load_one_file(model, config.as_deref(), &arguments.lora, target);
        return loaded.with_context(|| format!("cannot load the U-Net in {}", model.display()));
    }
    let dir = model::folder(model).map_err(anyhow::Error::msg)?;
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
