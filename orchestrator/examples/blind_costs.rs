//! What the scheme `blind` takes of a U-Net call of SD 1.5's shape, beside what is at home anyway: the user's shares, carries
//! and joins, and a worker's share against the same layers as they are, layer by layer in turn, with random weights.
//!
//! `RAYON_NUM_THREADS=1 cargo run --release -p lacuna-orchestrator --example blind_costs` gives one thread's seconds;
//! `-- quality` takes other bits.

use std::collections::BTreeMap;
use std::time::Instant;

use lacuna_kernels::allocator::keep_freed_pages;
use lacuna_model::device::OpenDevice;
use lacuna_model::unet::UNetConfig;
use lacuna_model::weights::{Weights, list};
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::schemes::blind::options::Bits;
use lacuna_orchestrator::schemes::blind::own::Own;
use lacuna_orchestrator::schemes::blind::sent::sent;
use lacuna_orchestrator::schemes::blind::verifier::{Verifier, expected_of};
use lacuna_orchestrator::schemes::{Setting, Sizes};
use lacuna_shares::join::{Outputs, join, round, scales};
use lacuna_shares::pack::{pack, unpack};
use lacuna_shares::split::{Extent, split};
use lacuna_shares::stream::Masks;
use lacuna_wire::HostTensor;
use lacuna_worker::Model;

const SD15: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../configs/models/sd15/unet/config.json"
);

/// Seconds by what they were spent on.
#[derive(Default)]
struct Clock(BTreeMap<&'static str, f64>);

impl Clock {
    fn time<T>(&mut self, what: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        *self.0.entry(what).or_default() += start.elapsed().as_secs_f64();
        done
    }
}

fn main() -> anyhow::Result<()> {
    keep_freed_pages();
    let bits = std::env::args().nth(1).unwrap_or_else(|| "speed".into());
    let Bits(precision) = bits.parse().map_err(anyhow::Error::msg)?;
    let unet = UNetConfig::from_file(SD15.as_ref())?.build();
    let sizes = Sizes {
        latents: [1, 64, 64],
        levels: unet.levels(),
        tokens: 77,
    };
    let layers = sent(&unet, &sizes)?;
    let mut parameters = list(&unet);
    parameters.retain(|parameter| layers.iter().any(|layer| layer.layer == parameter.layer()));
    let device = OpenDevice::cpu().device;
    let weights = Weights::random_part(&unet, &parameters, 1, &device)?;
    let model = Model::new(unet.clone(), weights.clone());
    let (mut user, mut worker, mut once) = (Clock::default(), Clock::default(), Clock::default());
    let (mut masks, mut verifier) = (Masks::fresh()?, Verifier::new(1.0)?);
    for layer in &layers {
        let x = TorchRng::new(1).randn(layer.features());
        let [batch, rows, columns] = layer.input;
        let shape = vec![batch, layer.c_in, rows, columns];
        let own = once.time("weights by input, and their norms", || {
            Own::new(&weights, layer, precision, Some(&mut verifier))
        })?;
        let mask = user.time("masks", || masks.draw(x.len(), precision.up()))?;
        let sizes = [layer.c_in, rows, columns];
        let extent = user.time("step size", || {
            Extent::of_windows(&x, sizes, layer.kernel, layer.enlarged)
        })?;
        let step = extent.step(precision, 2);
        let hidden = [mask];
        let (share, carries) = user.time("split", || split(&x, step, &hidden, precision))?;
        let packed = user.time("pack", || pack(&share, precision.up()))?;
        let mut y = user.time("carries", || own.multiply(layer, carries));
        // The same layer as it is, and by a share: on one machine, in turn.
        let plain = HostTensor::new(shape.clone(), x)?;
        worker.time("the layer", || {
            model.multiply(&layer.layer, plain, layer.enlarged)
        })?;
        let (kernel, outputs) = model.rows_of(&layer.layer)?;
        let scales = scales(&kernel, outputs, precision.fraction());
        let [_, _, high, wide] = layer.output;
        let of = Outputs {
            scales: &scales,
            values: high * wide,
        };
        let answer = worker.time("its share", || {
            let words = unpack(&packed, share.len(), precision.up())?;
            let words = words.into_iter().map(|word| word as f32).collect();
            let share = HostTensor::new(shape, words)?;
            let product = model.multiply(&layer.layer, share, layer.enlarged)?;
            Ok::<_, anyhow::Error>(pack(&round(&product.data, of), precision.down())?)
        })?;
        let words = user.time("unpack", || {
            let one = || unpack(&answer, layer.products(), precision.down());
            Ok::<_, lacuna_shares::Error>([one()?, one()?])
        })?;
        user.time("join", || {
            join(&words, &mut y, of, &own.bias, step, precision)
        })?;
        if let Some(check) = &own.check {
            let [share] = hidden;
            once.time("--verify of one share", || {
                let expected = expected_of(check, layer, vec![share]);
                check.mean(&words[0], &expected[0], of, precision.up())
            })?;
        }
    }
    let home = Setting::new(bits_free(), &unet, [1, 64, 64], 77);
    let all = home.count(&unet, 0)?.user_flop as f64 / 1e9;
    println!(
        "{bits}, {} layers of SD 1.5 at 512x512, batch 1, of {all:.0} GFLOP in all",
        layers.len()
    );
    for (what, clock) in [
        ("you, a call", &user),
        ("beside that", &once),
        ("a worker, a call", &worker),
    ] {
        println!("{what}: {:.2} s", clock.0.values().sum::<f64>());
        for (part, seconds) in &clock.0 {
            println!("    {part:<36} {seconds:.3}");
        }
    }
    let ratio = worker.0["its share"] / worker.0["the layer"];
    println!("a worker's share takes {ratio:.2} times what the layers take");
    Ok(())
}

/// The scheme that computes everything at home.
fn bits_free() -> std::sync::Arc<dyn lacuna_orchestrator::schemes::Scheme> {
    use lacuna_orchestrator::schemes::Options;
    lacuna_orchestrator::schemes::local::Local {}.scheme()
}
