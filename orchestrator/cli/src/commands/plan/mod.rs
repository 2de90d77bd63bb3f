//! `lacuna plan`: home or cloud? What a picture takes by every way that a policy allows, which way is best for
//! what, and what the policy's rules cost.

mod arguments;

use lacuna_model::device::{self};
use serde::Serialize;

pub use arguments::Arguments;
use lacuna_orchestrator::cost::time::{Seconds, Speeds};
use lacuna_orchestrator::error::Error;
use lacuna_orchestrator::output::console::{Console, print};
use lacuna_orchestrator::policy::Policy;
use lacuna_orchestrator::policy::ledger::Ledger;
use lacuna_orchestrator::policy::plan::{Plan, Relaxed, choose, relax};
use lacuna_orchestrator::policy::ways::{Best, Question, Way, all_schemes, best, table, ways};

/// A plan as JSON.
#[derive(Serialize)]
struct Summary<'a> {
    speeds: &'a Speeds,
    /// Bytes that are free at home, where that is known.
    memory: Option<u64>,
    /// Bytes that go to each worker once, except under blind; none where no adapters change the U-Net.
    adapter_bytes: Option<u64>,
    /// Everything that could be done, home first, each for one picture.
    ways: &'a [Way],
    /// None where nothing is possible.
    best: Option<Best>,
    /// The fastest placement on workers, and what a U-Net call takes by it; none where none is allowed.
    plan: Option<Call<'a>>,
    /// What the policy's rules cost.
    without: &'a [Relaxed],
}

/// A U-Net call as JSON.
#[derive(Serialize)]
struct Call<'a> {
    placement: serde_json::Value,
    seconds: Seconds,
    bytes_up: u64,
    bytes_down: u64,
    round_trips: usize,
    ledger: &'a Ledger,
}

/// Runs the command.
///
/// # Errors
/// A file that cannot be read; or, behind the table, a policy that allows no workers: the rule is named.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let fleet = arguments.fleet()?;
    // Workers that are only imagined are those of providers.
    let policy = arguments.terms.policy(Some(&fleet))?;
    let policy = match policy {
        Some(policy) => policy,
        None => Policy::private()?,
    };
    if arguments.compute.measure && arguments.workers.file().is_none() {
        let reason = "--measure: there is nothing to measure without --fleet";
        return Err(Error::Request(reason.into()).into());
    }
    let device = device::open(arguments.device, arguments.allow_software)?.device;
    let compute = &arguments.compute;
    let memory = arguments.memory(&device)?;
    let unet = arguments.size.unet()?;
    let adapter_bytes = arguments.adapter_bytes(&unet)?;
    let base = arguments.setting(&unet)?.adapted(adapter_bytes.is_some());
    let mut speeds = compute.here(&arguments.speed, &fleet, &device, &unet, &base.sizes)?;
    if compute.measure {
        speeds = speeds.refine(&fleet).await?;
    }
    let ways = ways(&Question {
        unet: &unet,
        policy: &policy,
        schemes: all_schemes(),
        sizes: base.sizes,
        adapted: base.adapted,
        fleet: &fleet,
        speeds: &speeds,
        calls: arguments.calls()?,
        memory,
    })?;
    let mut refused = None;
    let mut plan = choose(&unet, &policy, &base, &fleet, &speeds);
    let mut without = match &plan {
        Ok(_) => relax(&unet, &policy, &base, &fleet, &speeds)?,
        Err(_) => Vec::new(),
    };
    // Where a policy allows no strips, or something else is faster, that is the plan.
    if let Some(way) = fastest_on_workers(&ways) {
        let other = choose(&unet, &policy, &way.setting, &fleet, &speeds)?;
        let faster = |plan: &Plan| other.average < plan.average;
        if plan.as_ref().map_or(true, faster) {
            refused = plan.err();
            (plan, without) = (Ok(other), Vec::new());
        }
    }
    if arguments.json {
        let summary = Summary {
            speeds: &speeds,
            memory,
            adapter_bytes,
            best: best(&ways),
            ways: &ways,
            plan: plan.as_ref().ok().map(call),
            without: &without,
        };
        print(serde_json::to_string_pretty(&summary)?)?;
        plan?;
        return Ok(());
    }
    let console = Console::default();
    console.line(arguments.title(&base, &policy)?);
    console.line(circumstances(&speeds, memory));
    console.line(format_args!("\n{}", table(&ways)));
    console.line(
        "memory is of your part of the U-Net; text encoder and VAE take theirs before and after it",
    );
    if let Some(bytes) = adapter_bytes {
        let megabytes = bytes as f64 / 1e6;
        console.line(format_args!(
            "the adapters' {megabytes:.1} MB (--lora) go to each worker once; under blind they stay with you"
        ));
    }
    match best(&ways) {
        Some(best) => console.line(best.line()),
        None => console.line("nothing of that is possible here"),
    }
    if let Some(refused) = refused {
        console.line(format_args!("\nstrips are not possible: {refused}"));
    }
    let plan = plan?;
    let place = match plan.setting.scheme.needs_workers() {
        true => "the fastest on workers",
        false => "the fastest is at home",
    };
    console.line(format_args!("\n{place}: {}", plan.summary()));
    let seconds = plan.average;
    let calls = arguments.calls()? as f64;
    for relaxed in without {
        let less = seconds - relaxed.seconds;
        // What saves less than a hundredth is no reason to give up a rule.
        if less > 0.01 * seconds {
            console.line(format_args!(
                "without the rule {}: {:.1} s a picture, {:.1} s less",
                relaxed.rule,
                calls * relaxed.seconds,
                calls * less
            ));
        }
    }
    if arguments.verbose {
        console.line(format_args!("\n{}", plan.exchanges(&speeds)));
    }
    Ok(console.finish()?)
}

fn fastest_on_workers(ways: &[Way]) -> Option<&Way> {
    let possible = ways.iter().filter(|way| way.refused.is_none());
    possible
        .filter(|way| way.setting.scheme.needs_workers())
        .min_by(|a, b| a.cost.seconds.total_cmp(&b.cost.seconds))
}

fn call(plan: &Plan) -> Call<'_> {
    let [bytes_up, bytes_down] = plan.count.total();
    Call {
        placement: plan.setting.scheme.placement(),
        seconds: plan.seconds,
        bytes_up,
        bytes_down,
        round_trips: plan.count.round_trips(),
        ledger: &plan.ledger,
    }
}

fn circumstances(speeds: &Speeds, memory: Option<u64>) -> String {
    let memory = match memory {
        Some(bytes) => format!("{:.1} GB of memory are free", bytes as f64 / 1e9),
        None => "your free memory is not known".to_owned(),
    };
    format!("for {speeds}; {memory}")
}
