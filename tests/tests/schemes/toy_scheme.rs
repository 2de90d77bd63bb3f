//! A scheme of somebody else's, made by the recipe of `docs/architecture.md`: nothing but this file knows it.
//!
//! `turns` gives every 3x3 convolution, whole, to the next worker in turn.

use std::any::Any;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use burn::tensor::Tensor;
use clap::Args;
use lacuna_model::device::OpenDevice;
use lacuna_model::executor::Executor;
use lacuna_model::host::OnDevice;
use lacuna_model::layers::{Attention, Conv2d, GroupNorm};
use lacuna_model::partition::{Rows, cut, rows_with_halo};
use lacuna_model::survey::{self, survey};
use lacuna_model::unet::{CONV_IN, TimeEmbedding, UNet};
use lacuna_model::whole::Whole;
use lacuna_orchestrator::error::{Error, Result};
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::fleet::tally::{Kind, Seen, Traffic};
use lacuna_orchestrator::fleet::{Fleet, Piece};
use lacuna_orchestrator::generator::{Event, Generator, Request};
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_orchestrator::policy::Policy;
use lacuna_orchestrator::policy::ledger::Ledger;
use lacuna_orchestrator::schemes::count::{Count, Counted};
use lacuna_orchestrator::schemes::local::Local;
use lacuna_orchestrator::schemes::registry::Entry;
use lacuna_orchestrator::schemes::{
    Account, Exposure, Finished, Options, Placed, Predictor, Scheme, Setting, Sizes, Uses,
};
use lacuna_orchestrator::text::Prompt;
use lacuna_protocol::placement::Wire;
use lacuna_protocol::session::Work;
use lacuna_wire::HostTensor;
use tests::golden::model_dir;
use tests::workers::{RunningWorker, fleet_file};
use tokio::task::spawn_blocking;

/// The scheme and its option.
#[derive(Args, Clone, Copy, Debug)]
struct Turns {
    /// turns: how many convolutions go to one worker before it is the next one's turn.
    #[arg(long, default_value_t = 1)]
    at_once: usize,
}

impl Options for Turns {
    const NAME: &'static str = "turns";
    const ABOUT: &'static str = "Convolutions go to one worker after the other";

    fn scheme(self) -> Arc<dyn Scheme> {
        Arc::new(self)
    }
}

fn is_sent(layer: &str, kernel: usize) -> bool {
    kernel > 1 && layer != CONV_IN
}

impl Scheme for Turns {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn uses(&self, _levels: usize) -> Uses {
        Uses {
            self_attention: Vec::new(),
            wires: vec![Wire::F32],
        }
    }

    fn exposure(&self, _levels: usize) -> Exposure {
        Exposure {
            latents: true,
            ..Exposure::default()
        }
    }

    fn seen(&self, _unet: &UNet, _sizes: &Sizes, workers: usize) -> Result<Vec<Seen>> {
        let mut all = Seen::default();
        all.add_strip(&(0..1), 1);
        Ok(vec![all; workers])
    }

    fn first_calls(&self, unet: &UNet, sizes: &Sizes, workers: usize) -> Result<[Count; 2]> {
        let (mut first, mut sent) = (Count::new(workers), 0);
        let mut once = 0;
        for operation in survey(unet, sizes.latents, sizes.tokens)? {
            if operation.makes_prompt_keys() {
                once += operation.flop;
                continue;
            }
            let kernel = match operation.kind {
                survey::Kind::Conv { kernel } => kernel,
                _ => 0,
            };
            if !is_sent(&operation.layer, kernel) {
                first.user_flop += operation.flop;
                continue;
            }
            let worker = sent / self.at_once % workers;
            sent += 1;
            let of = |bytes: usize| (0..workers).map(move |i| if i == worker { bytes } else { 0 });
            let [b, c, h, w] = operation.input;
            // One row of zeros above and below.
            let up = b * c * (h + 2) * w * size_of::<f32>();
            let down = operation.output.iter().product::<usize>() * size_of::<f32>();
            first.workers_flop[worker] += operation.flop;
            first.exchanges.push(Counted {
                label: operation.layer,
                kind: Kind::Conv,
                up: of(up).collect(),
                down: of(down).collect(),
                bands: 1,
                ahead: 0,
                workers_flop: operation.flop,
                user_flop: 0,
            });
        }
        let later = first.clone();
        first.user_flop += once;
        Ok([first, later])
    }

    fn user_layers(&self, unet: &UNet, sizes: &Sizes) -> Result<Option<HashSet<String>>> {
        let operations = survey(unet, sizes.latents, sizes.tokens)?.into_iter();
        let own = operations.filter(|operation| match operation.kind {
            survey::Kind::Conv { kernel } => !is_sent(&operation.layer, kernel),
            _ => true,
        });
        Ok(Some(own.map(|operation| operation.layer).collect()))
    }

    fn predictor<'a>(
        &self,
        unet: &'a UNet,
        _sizes: &Sizes,
        whole: Whole,
        fleet: Fleet,
    ) -> Result<Box<dyn Predictor + 'a>> {
        Ok(Box::new(Placed {
            unet,
            device: whole.device().clone(),
            executor: OneAfterTheOther {
                whole,
                fleet,
                at_once: self.at_once,
                sent: 0,
            },
        }))
    }
}

/// The executor.
struct OneAfterTheOther {
    whole: Whole,
    fleet: Fleet,
    at_once: usize,
    sent: usize,
}

impl Account for OneAfterTheOther {
    fn traffic(&self) -> Option<Traffic> {
        Some(self.fleet.traffic())
    }

    fn finish(self) -> Finished {
        Finished {
            user_flop: self.whole.flop(),
            fleet: Some(self.fleet),
            ..Finished::default()
        }
    }
}

impl Executor for OneAfterTheOther {
    type Feature = Tensor<4>;
    type Tokens = Tensor<3>;
    type Embedding = Tensor<2>;
    type Error = Error;

    fn conv(&mut self, layer: &Conv2d, x: &Tensor<4>) -> Result<Tensor<4>> {
        if !is_sent(&layer.name, layer.kernel) {
            return Ok(self.whole.conv(layer, x)?);
        }
        let [b, _, h, w] = x.dims();
        let [rows, columns] = [h, w].map(|side| layer.out_size(side));
        let worker = self.sent / self.at_once % self.fleet.len();
        self.sent += 1;
        let host = HostTensor::from_device(x.clone())?;
        let piece = Piece {
            work: Work::Conv {
                layer: layer.name.clone(),
                odd: false,
            },
            inputs: vec![cut(
                &host,
                Rows::OfFeature,
                &rows_with_halo(layer, &(0..rows)),
            )?],
            output: vec![b, layer.c_out, rows, columns],
        };
        let parts = (0..self.fleet.len()).map(|i| (i == worker).then(|| vec![piece.clone()]));
        let parts = parts.collect();
        if let Some(tally) = self.fleet.tallies().nth(worker) {
            tally.seen.add_strip(&(0..rows), rows);
        }
        let replies = self.fleet.exchange(Kind::Conv, parts)?;
        let mut replies = replies.into_iter().flatten().flatten();
        let y = replies.next().unwrap().into_tensor(&layer.name)?;
        Ok(y.into_device(self.whole.device())?)
    }

    fn group_norm(&mut self, layer: &GroupNorm, x: &Tensor<4>) -> Result<Tensor<4>> {
        Ok(self.whole.group_norm(layer, x)?)
    }

    fn group_norm_silu(&mut self, layer: &GroupNorm, x: &Tensor<4>) -> Result<Tensor<4>> {
        Ok(self.whole.group_norm_silu(layer, x)?)
    }

    fn embed_time(&mut self, layer: &TimeEmbedding, timestep: f64) -> Result<Tensor<2>> {
        Ok(self.whole.embed_time(layer, timestep)?)
    }

    fn upsample(&mut self, x: &Tensor<4>, like: &Tensor<4>) -> Result<Tensor<4>> {
        Ok(self.whole.upsample(x, like)?)
    }

    fn self_attention(&mut self, layer: &Attention, x: &Tensor<3>) -> Result<Tensor<3>> {
        Ok(self.whole.self_attention(layer, x)?)
    }

    fn cross_attention(&mut self, layer: &Attention, x: &Tensor<3>) -> Result<Tensor<3>> {
        Ok(self.whole.cross_attention(layer, x)?)
    }

    lacuna_model::whole_does_the_rest!(whole);
    lacuna_model::whole_maps_tokens!(whole);
}

const NAME: &str = "sd1";
const STEPS: usize = 3;

#[test]
fn its_option_is_read_like_any_other() {
    let entry = Entry::of::<Turns>();
    assert_eq!(entry.options(), ["at-once"]);
    let with = |value: &str| entry.with_options(&[("at-once".to_owned(), value.to_owned())]);
    assert_eq!(with("2").unwrap().name(), "turns");
    assert!(with("two").unwrap_err().contains("two"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_house_takes_it_as_it_takes_its_own() {
    let workers = [
        RunningWorker::start(NAME, &lacuna_worker::Options::default()).await,
        RunningWorker::start(NAME, &lacuna_worker::Options::default()).await,
    ];
    let urls = workers.each_ref().map(|w| (w.url.as_str(), None));
    let folder = tempfile::tempdir().unwrap();
    let fleet = FleetConfig::from_file(&fleet_file(folder.path(), &urls)).unwrap();
    let device = OpenDevice::cpu().device;
    let pipeline = Arc::new(Pipeline::open(&model_dir(NAME), None, &[], &device).unwrap());
    let unet = pipeline.unet();
    let sampling = pipeline.sampling(STEPS, Some(5.0));
    let shape = pipeline.latent_shape(None, None).unwrap();
    let prompt = Prompt::new("a cat");
    let conditioning = pipeline.encode(&prompt, &sampling, shape).unwrap();
    let [_, tokens, _] = conditioning.context.dims();
    let [_, _, rows, columns] = shape;
    let setting = Setting {
        scheme: Turns { at_once: 2 }.scheme(),
        sizes: Sizes {
            latents: [sampling.batch(), rows, columns],
            levels: unet.levels(),
            tokens,
        },
        adapted: false,
    };

    // It is foreseen, and refused by a policy that forbids what it shows.
    let ledger = Ledger::foresee(unet, &setting, &fleet, &[]).unwrap();
    assert_eq!(ledger.most_rows(), 1.0);
    let private = Policy::private().unwrap();
    let error = private.check(&setting, &ledger).unwrap_err().to_string();
    assert!(error.contains("max_rows"), "{error}");

    let noise = TorchRng::new(1).randn(shape.iter().product());
    let noise = HostTensor::new(shape, noise).unwrap();
    let make = |setting: Setting, fleet: Option<FleetConfig>| {
        let whole = match fleet {
            Some(_) => None,
            None => Some(pipeline.source().load_all().unwrap()),
        };
        let (conditioning, noise) = (conditioning.clone(), noise.clone());
        let generator = Generator::new(pipeline.clone(), sampling.clone(), setting, whole, fleet);
        spawn_blocking(move || {
            let weights = generator.denoiser.weights().unwrap();
            let request = Request::new(conditioning, noise, TorchRng::new(1));
            let mut go_on = |_: Event<'_>| ControlFlow::Continue(());
            let latents = generator.denoise(request, weights, &mut go_on);
            (latents.unwrap(), generator.denoiser.accounts().clone())
        })
    };
    let promised = setting.first_calls(unet, 2).unwrap();
    let calls = pipeline.calls(&sampling).unwrap();
    let own = setting.by(Local {}.scheme());
    let (split, accounts) = make(setting, Some(fleet)).await.unwrap();
    let (whole, alone) = make(own, None).await.unwrap();
    assert!(split == whole, "the picture is not that of the whole model");

    let tallies = &accounts.pictures[0];
    let total = tallies.iter().fold([0, 0], |[up, down], tally| {
        let total = tally.total();
        [up + total.payload_up, down + total.payload_down]
    });
    let [up, down] = promised[1].total();
    assert_eq!(total, [up, down].map(|bytes| bytes * calls as u64));
    assert!(tallies.iter().all(|tally| tally.seen.rows.share() == 1.0));
    let sent: u64 = promised[1].workers_flop.iter().sum();
    assert_eq!(
        accounts.user_flop + sent * calls as u64,
        alone.user_flop,
        "work that nobody does, or that is done twice"
    );
}
