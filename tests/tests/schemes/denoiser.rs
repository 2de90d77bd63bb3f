//! U-Net calls without a model around the U-Net: what `lacuna bench` and `lacuna audit` ask of the library.

use std::sync::Arc;

use lacuna_model::device::OpenDevice;
use lacuna_model::host::OnDevice;
use lacuna_model::unet::UNetConfig;
use lacuna_model::whole::Conditioning;
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::fleet::tap::Tap;
use lacuna_orchestrator::generator::denoiser::{Accounts, Denoiser};
use lacuna_orchestrator::generator::failover::OnLoss;
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::schemes::Setting;
use lacuna_orchestrator::unet_source::UNetSource;
use lacuna_wire::HostTensor;
use lacuna_worker::{Model, Options};
use tests::golden::model_dir;
use tests::relay::Relay;
use tests::relay::fault::Fault;
use tests::scheme::scheme;
use tests::workers::{RunningWorker, fleet_file};
use tokio::task::spawn_blocking;

const SIDE: usize = 16;
const TOKENS: usize = 7;
/// U-Net calls, whose predictions are the next one's samples.
const CALLS: usize = 2;
/// The request that the lost worker does not answer any more: in the second call.
const MIDDLE: usize = 40;

fn source() -> Arc<UNetSource> {
    let config = UNetConfig::from_file(&model_dir("sd1").join("unet/config.json")).unwrap();
    let device = OpenDevice::cpu().device;
    Arc::new(UNetSource::random(config.build(), 3, &device))
}

async fn worker(source: &UNetSource) -> RunningWorker {
    let weights = source.load_all().unwrap();
    let model = Model::new(source.layers().clone(), weights, source.digest());
    RunningWorker::of(Arc::new(model), &Options::default()).await
}

fn fleet(workers: &[&str], spares: &[&str]) -> FleetConfig {
    let folder = tempfile::tempdir().unwrap();
    let all = workers.iter().chain(spares).map(|url| (*url, None));
    let file = fleet_file(folder.path(), &all.collect::<Vec<_>>());
    let mut config = FleetConfig::from_file(&file).unwrap();
    config.spares = config.workers.split_off(workers.len());
    config
}

fn denoiser(source: &Arc<UNetSource>, by: &str, fleet: Option<FleetConfig>) -> Denoiser {
    let unet = source.layers();
    let setting = Setting::new(scheme(by, &[]), unet, [2, SIDE, SIDE], TOKENS);
    Denoiser::new(source.clone(), setting, None, fleet)
}

/// The last prediction of some calls on noise.
async fn last(denoiser: Denoiser) -> (Result<HostTensor, String>, Accounts) {
    let calls = move || {
        let noise = |seed, shape: &[usize]| {
            let values = TorchRng::new(seed).randn(shape.iter().product());
            HostTensor::new(shape, values).unwrap()
        };
        let context = noise(1, &[2, TOKENS, source().layers().context_width]);
        let conditioning =
            Conditioning::of_text(context.into_device(&OpenDevice::cpu().device).unwrap());
        let weights = denoiser.weights().unwrap();
        let predicted = denoiser.predict(weights, conditioning, |predictor| {
            let mut sample = noise(2, &[2, 4, SIDE, SIDE]);
            for call in 0..CALLS {
                sample = predictor.predict(sample, 801.0 - 100.0 * call as f64)?;
            }
            Ok(sample)
        });
        let accounts = denoiser.accounts().clone();
        (predicted.map_err(|error| error.to_string()), accounts)
    };
    spawn_blocking(calls).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn random_weights_predict_the_same_here_and_on_workers() {
    let source = source();
    let [first, second] = [worker(&source).await, worker(&source).await];
    let (here, alone) = last(denoiser(&source, "local", None)).await;
    let tap = Tap::default();
    let split = denoiser(
        &source,
        "resident",
        Some(fleet(&[&first.url, &second.url], &[])),
    );
    let (there, accounts) = last(split.tapped(vec![(1, tap.clone())])).await;
    assert!(here.unwrap() == there.unwrap());
    assert!(accounts.user_flop < alone.user_flop && accounts.user_flop > 0);
    assert!(alone.pictures.is_empty());
    let [tallies] = accounts.pictures.as_slice() else {
        panic!("{} pictures", accounts.pictures.len());
    };
    assert_eq!(tallies.len(), 2);
    // What was overheard is what the second worker was sent, request by request.
    let requests = tallies[1].total().requests;
    let heard = tap.take().messages.len() as u64;
    assert!(heard > 0 && heard <= requests, "{heard} of {requests}");
    assert!(tap.take().messages.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_measures_goes_on_with_nobody_else() {
    let source = source();
    let [first, second, spare] = [
        worker(&source).await,
        worker(&source).await,
        worker(&source).await,
    ];
    for scheme in ["resident", "ppidm"] {
        let (here, _) = last(denoiser(&source, "local", None)).await;
        for on_loss in [OnLoss::End, OnLoss::Spare] {
            let lost = Relay::failing(&second.url, MIDDLE, Fault::Gone);
            let given = fleet(&[&first.url, &lost.url], &[&spare.url]);
            let denoiser = denoiser(&source, scheme, Some(given)).on_loss(on_loss);
            let (there, accounts) = last(denoiser).await;
            let of_spare = accounts.pictures[0].iter().filter(|t| t.url == spare.url);
            match on_loss {
                OnLoss::End => {
                    let error = there.unwrap_err();
                    assert!(error.contains(&lost.url), "{scheme}: {error}");
                    assert!(!error.contains("spare"), "{scheme}: {error}");
                    assert_eq!((of_spare.count(), accounts.pictures[0].len()), (0, 2));
                }
                _ => {
                    assert!(there.unwrap() == *here.as_ref().unwrap(), "{scheme}");
                    assert_eq!(of_spare.count(), 1, "{scheme}");
                }
            }
            assert_eq!(lost.faults(), 1, "{scheme}");
        }
    }
}
