//! What the scheme `blind` takes of a U-Net call of SD 1.5's shape, beside what is at home anyway: the user's shares, carries
//! and joins, and a worker's share against the same layers as they are, layer by layer in turn, with random weights.
//!
//! `RAYON_NUM_THREADS=1 cargo run --release -p lacuna-orchestrator --example blind_costs` gives one thread's seconds;
//! `-- --share-bits quality` takes other bits; `--shares`, `--share-carries` and `--share-layers` likewise.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use clap::Parser;
use lacuna_kernels::allocator::keep_freed_pages;
use lacuna_model::device::{OpenDevice, Precision};
use lacuna_model::unet::UNetConfig;
use lacuna_model::weights::{Weights, list, random_digest};
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::schemes::blind::options::Blind;
use lacuna_orchestrator::schemes::blind::own::Own;
use lacuna_orchestrator::schemes::blind::placement::sent;
use lacuna_orchestrator::schemes::blind::sent::{Form, Multiplied, Sent};
use lacuna_orchestrator::schemes::blind::verifier::Verifier;
use lacuna_orchestrator::schemes::{Options, Setting, Sizes};
use lacuna_shares::Shares;
use lacuna_shares::bands::{Band, Needed};
use lacuna_shares::join::{Outputs, join, round, scales};
use lacuna_shares::pack::pack;
use lacuna_shares::split::split;
use lacuna_shares::stream::Masks;
use lacuna_worker::{Model, Operand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SD15: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../configs/models/sd15/unet/config.json"
);

/// Seconds by what they were spent on.
#[derive(Default)]
struct Clock(BTreeMap<&'static str, f64>);

impl Clock {
    /// Of each thing the fewest seconds that a call took for it: the others were disturbed.
    fn least(calls: Vec<Self>) -> Self {
        let mut least = Self::default();
        for (what, seconds) in calls.into_iter().flat_map(|call| call.0) {
            let so_far = least.0.entry(what).or_insert(f64::INFINITY);
            *so_far = so_far.min(seconds);
        }
        least
    }
}

impl Clock {
    fn time<T>(&mut self, what: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        *self.0.entry(what).or_default() += start.elapsed().as_secs_f64();
        done
    }
}

/// What is timed.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    blind: Blind,
    /// Calls, of which the fastest counts.
    #[arg(long, default_value_t = 3)]
    calls: usize,
}

fn main() -> anyhow::Result<()> {
    keep_freed_pages();
    let Arguments { blind, calls } = Arguments::parse();
    let shares = blind.chosen()?;
    let up = shares.masks(2)?.first().copied().unwrap_or_default();
    let unet = UNetConfig::from_file(SD15.as_ref())?.build();
    let sizes = Sizes {
        latents: [1, 64, 64],
        levels: unet.levels(),
        tokens: 77,
    };
    let all = sent(&unet, &sizes, blind.layers())?;
    let names: HashSet<&str> = all
        .iter()
        .flat_map(|sent| sent.layers.iter().map(|layer| layer.layer.as_str()))
        .collect();
    let mut parameters = list(&unet);
    parameters.retain(|parameter| names.contains(parameter.layer()));
    let device = OpenDevice::cpu().device;
    let weights = Weights::random_part(&parameters, 1, &device)?;
    let model = Model::new(unet.clone(), weights.clone(), random_digest(&unet, 1));
    let mut once = Clock::default();
    let (mut masks, mut verifier) = (Masks::fresh()?, Verifier::new(1.0)?);
    // What is made once is made before all calls, so that a call's memory is as warm as in a picture.
    let mut layers = Vec::new();
    for sent in &all {
        let whole = sent.bands(1)?;
        let words = vec![0; sent.features()];
        let each = sent.layers.iter().map(|layer| {
            let own = once.time("weights by input, and their norms", || {
                Own::new(&weights, sent, layer, shares, Some(&mut verifier))
            })?;
            let scales = match shares {
                Shares::Carry(precision) => {
                    let (rows, outputs) = model.rows_of(&layer.layer, Precision::F32)?;
                    scales(&rows, outputs, precision.fraction())
                }
                Shares::Ring(_) => Vec::new(),
            };
            let at = At {
                sent,
                layer,
                model: &model,
                scales,
            };
            at.answer(shares, &words, &whole)?;
            anyhow::Ok((own, at))
        });
        layers.push(each.collect::<anyhow::Result<Vec<_>>>()?);
    }
    let (mut users, mut workers, mut verifying) = (Vec::new(), Vec::new(), Vec::new());
    for call in 0..calls {
        let (mut user, mut worker, mut checks) =
            (Clock::default(), Clock::default(), Clock::default());
        for (sent, layers) in all.iter().zip(&layers) {
            let x = TorchRng::new(1).randn(sent.features());
            let bands = sent.bands(sent.bands_at(up))?;
            let mask = user.time("masks", || masks.draw(x.len(), up))?;
            let step = user.time("step size", || sent.extent(&x))?.step(shares, 2);
            let hidden = [mask];
            let (share, carries) = user.time("split", || split(&x, step, &hidden, shares))?;
            let rows = bands.iter().map(|band| band.input.clone());
            let packed = user.time("pack", || sent.planes().pack(&share, rows, up))?;
            let words = worker.time("its share", || unpack_all(sent, &bands, &packed, up))?;
            for (own, at) in layers {
                // The same layer as it is, and by a share: on one machine, in turn, and once the one first and once the other.
                if call % 2 == 0 {
                    worker.time("the layer", || at.plain(&words))?;
                }
                let answer = worker.time("its share", || at.answer(shares, &words, &bands))?;
                if call % 2 == 1 {
                    worker.time("the layer", || at.plain(&words))?;
                }
                let alone = Sent {
                    layers: vec![at.layer.clone()],
                    ..sent.clone()
                };
                let mut y = user.time("carries", || own.multiply(sent, &carries));
                let words = user.time("unpack", || {
                    let one = || anyhow::Ok(alone.read(&answer, &bands, shares.down())?.remove(0));
                    anyhow::Ok([one()?, one()?])
                })?;
                let lie = own.lie(sent);
                user.time("join", || {
                    join(&words, &mut y, lie, &own.bias, step, shares)
                })?;
                if let Some(check) = &own.check {
                    checks.time("--verify of one share", || {
                        let expected = check.expected(sent, &hidden);
                        check.mean(&words[0], &expected[0], lie, up)
                    })?;
                }
            }
        }
        users.push(user);
        workers.push(worker);
        verifying.push(checks);
    }
    let [user, worker, checks] = [users, workers, verifying].map(Clock::least);
    once.0.extend(checks.0);
    let exchanges = all.len();
    let home = Setting::new(bits_free(), &unet, [1, 64, 64], 77);
    let all = home.count(&unet, 0)?.user_flop as f64 / 1e9;
    println!(
        "{}: {exchanges} exchanges of SD 1.5 at 512x512, batch 1, of {all:.0} GFLOP in all",
        blind.scheme().in_words()
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
    let (mut words, mut rest) = (Vec::new(), packed);
    for band in bands {
        rest = sent.planes().unpack(&mut words, &band.input, rest, bits)?;
    }
    Ok(words)
}

/// A layer at a worker.
struct At<'a> {
    model: &'a Model,
    sent: &'a Sent,
    layer: &'a Multiplied,
    /// What products are multiplied with before they are rounded; of a ring they are not.
    scales: Vec<f32>,
}

impl At<'_> {
    /// The rows of `words` that a band is made of.
    fn operand<'a>(&self, words: &'a [i32], needed: &'a Needed) -> Operand<'a> {
        let columns = match self.sent.form {
            Form::Map { enlarged, .. } => enlarged.map(|[_, columns]| columns),
            Form::Tokens => None,
        };
        Operand {
            share: words,
            planes: self.sent.planes(),
            needed,
            columns,
        }
    }

    /// The product with `words`, as with any input.
    fn plain(&self, words: &[i32]) -> anyhow::Result<()> {
        for band in &self.sent.bands(1)? {
            let needed = self.sent.rows().needed(&band.output);
            let operand = self.operand(words, &needed);
            self.model
                .multiply(&self.layer.layer, operand, (false, Precision::F32))?;
        }
        Ok(())
    }

    /// What a worker makes of a share, band by band.
    fn answer(&self, shares: Shares, words: &[i32], bands: &[Band]) -> anyhow::Result<Vec<u8>> {
        let mut answer = Vec::new();
        let name = &self.layer.layer;
        for band in bands.iter().filter(|band| !band.output.is_empty()) {
            let needed = self.sent.rows().needed(&band.output);
            let operand = self.operand(words, &needed);
            let words = match shares {
                Shares::Carry(_) => {
                    let odd = band.output.start % 2 == 1;
                    let product = self.model.multiply(name, operand, (odd, Precision::F32))?;
                    let lie = Outputs {
                        scales: &self.scales,
                        values: match product.shape[..] {
                            [_, _, rows, columns] => rows * columns,
                            _ => 1,
                        },
                    };
                    round(&product.data, lie, shares.down())?
                }
                Shares::Ring(ring) => {
                    let of = (ring, Precision::F32);
                    let product = self.model.multiply_in(of, name, operand)?;
                    pack(&ring.round(&product), ring.down())?
                }
            };
            answer.extend(words);
        }
        Ok(answer)
    }
}

/// The scheme that computes everything at home.
fn bits_free() -> std::sync::Arc<dyn lacuna_orchestrator::schemes::Scheme> {
    lacuna_orchestrator::schemes::local::Local {}.scheme()
}
