//! What the scheme `blind` takes of a U-Net call of SD 1.5's shape, beside what is at home anyway: the user's shares, carries
//! and joins, and a worker's share against the same layers as they are, layer by layer in turn, with random weights.
//!
//! `RAYON_NUM_THREADS=1 cargo run --release -p lacuna-orchestrator --example blind_costs` gives one thread's seconds;
//! `-- quality` takes other bits, `-- speed all` other layers.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use lacuna_kernels::allocator::keep_freed_pages;
use lacuna_model::device::OpenDevice;
use lacuna_model::unet::UNetConfig;
use lacuna_model::weights::{Weights, list};
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::schemes::blind::options::{Bits, Layers};
use lacuna_orchestrator::schemes::blind::own::Own;
use lacuna_orchestrator::schemes::blind::sent::{Form, Sent, sent};
use lacuna_orchestrator::schemes::blind::verifier::{Verifier, expected_of};
use lacuna_orchestrator::schemes::{Setting, Sizes};
use lacuna_shares::bands::Band;
use lacuna_shares::join::{Outputs, join, round, scales};
use lacuna_shares::pack::pack;
use lacuna_shares::split::split;
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
    let which = std::env::args().nth(2).unwrap_or_else(|| "convs".into());
    let which: Layers = which.parse().map_err(anyhow::Error::msg)?;
    let unet = UNetConfig::from_file(SD15.as_ref())?.build();
    let sizes = Sizes {
        latents: [1, 64, 64],
        levels: unet.levels(),
        tokens: 77,
    };
    let all = sent(&unet, &sizes, which)?;
    let names: HashSet<&str> = all
        .iter()
        .flat_map(|sent| sent.layers.iter().map(|layer| layer.layer.as_str()))
        .collect();
    let mut parameters = list(&unet);
    parameters.retain(|parameter| names.contains(parameter.layer()));
    let device = OpenDevice::cpu().device;
    let weights = Weights::random_part(&unet, &parameters, 1, &device)?;
    let model = Model::new(unet.clone(), weights.clone());
    let (mut user, mut worker, mut once) = (Clock::default(), Clock::default(), Clock::default());
    let (mut masks, mut verifier) = (Masks::fresh()?, Verifier::new(1.0)?);
    for sent in &all {
        let x = TorchRng::new(1).randn(sent.features());
        let (bands, whole) = (sent.bands(sent.bands_at(precision.up()))?, sent.bands(1)?);
        let mask = user.time("masks", || masks.draw(x.len(), precision.up()))?;
        let step = user
            .time("step size", || sent.extent(&x))?
            .step(precision, 2);
        let hidden = [mask];
        let (share, carries) = user.time("split", || split(&x, step, &hidden, precision))?;
        let rows = bands.iter().map(|band| band.input.clone());
        let packed = user.time("pack", || sent.planes().pack(&share, rows, precision.up()))?;
        let words = worker.time("its share", || {
            let words = unpack_all(sent, &bands, &packed, precision.up())?;
            Ok::<_, anyhow::Error>(
                words
                    .into_iter()
                    .map(|word| word as f32)
                    .collect::<Vec<_>>(),
            )
        })?;
        let mut answers = Vec::new();
        for layer in &sent.layers {
            let own = once.time("weights by input, and their norms", || {
                Own::new(&weights, layer, precision, Some(&mut verifier))
            })?;
            let (kernel, outputs) = model.rows_of(&layer.layer)?;
            let scales = scales(&kernel, outputs, precision.fraction());
            // The same layer as it is, and by a share: on one machine, in turn.
            worker.time("the layer", || {
                product(&model, sent, &layer.layer, &x, &whole)
            })?;
            let answer = worker.time("its share", || {
                let mut answer = Vec::new();
                for of_band in product(&model, sent, &layer.layer, &words, &bands)? {
                    let values = match of_band.shape[..] {
                        [_, _, rows, columns] => rows * columns,
                        _ => 1,
                    };
                    let lie = Outputs {
                        scales: &scales,
                        values,
                    };
                    answer.extend(pack(&round(&of_band.data, lie), precision.down())?);
                }
                Ok::<_, anyhow::Error>(answer)
            })?;
            answers.push((own, answer));
        }
        for (i, (own, answer)) in answers.iter().enumerate() {
            let alone = Sent {
                layers: vec![sent.layers[i].clone()],
                ..sent.clone()
            };
            let mut y = user.time("carries", || own.multiply(sent, &carries));
            let words = user.time("unpack", || {
                let one = || alone.read(answer, &bands, precision.down());
                Ok::<_, anyhow::Error>([one()?.concat(), one()?.concat()])
            })?;
            let lie = own.lie(sent);
            user.time("join", || {
                join(&words, &mut y, lie, &own.bias, step, precision)
            })?;
            if let Some(check) = &own.check {
                once.time("--verify of one share", || {
                    let expected = expected_of(check, sent, &hidden);
                    check.mean(&words[0], &expected[0], lie, precision.up())
                })?;
            }
        }
    }
    let exchanges = all.len();
    let home = Setting::new(bits_free(), &unet, [1, 64, 64], 77);
    let all = home.count(&unet, 0)?.user_flop as f64 / 1e9;
    println!(
        "{bits}, {which}: {} exchanges of SD 1.5 at 512x512, batch 1, of {all:.0} GFLOP in all",
        exchanges
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

/// The words of a share that came in bands.
fn unpack_all(sent: &Sent, bands: &[Band], packed: &[u8], bits: u32) -> anyhow::Result<Vec<i32>> {
    let (mut words, mut rest) = (vec![0; sent.features()], packed);
    for band in bands {
        rest = sent.planes().unpack(&mut words, &band.input, rest, bits)?;
    }
    Ok(words)
}

/// The product of a layer's weights with `x`, band by band, as a worker makes it.
fn product(
    model: &Model,
    sent: &Sent,
    layer: &str,
    x: &[f32],
    bands: &[Band],
) -> anyhow::Result<Vec<HostTensor>> {
    let [batch, ..] = sent.input;
    let enlarged = match sent.form {
        Form::Map { enlarged, .. } => enlarged.map(|[_, columns]| columns),
        Form::Tokens => None,
    };
    let outputs = bands.iter().filter(|band| !band.output.is_empty());
    let each = outputs.map(|band| {
        let needed = sent.rows().needed(&band.output);
        let rows = needed.input.len();
        let shape = match sent.form {
            Form::Map { .. } => vec![batch, sent.c_in, rows, sent.input[2]],
            Form::Tokens => vec![batch, rows, sent.c_in],
        };
        let x = HostTensor::new(shape, sent.planes().take(x, &needed.input))?;
        Ok(model.multiply(layer, x, &needed, enlarged, band.output.start % 2 == 1)?)
    });
    each.collect()
}

/// The scheme that computes everything at home.
fn bits_free() -> std::sync::Arc<dyn lacuna_orchestrator::schemes::Scheme> {
    use lacuna_orchestrator::schemes::Options;
    lacuna_orchestrator::schemes::local::Local {}.scheme()
}
