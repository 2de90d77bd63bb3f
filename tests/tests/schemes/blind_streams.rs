//! What workers are sent under `blind`: seeds that serve once, and words that are uniform, one by one and in their
//! differences.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use lacuna_instruments::audit::uniformity::{Uniformity, Words};
use lacuna_protocol::session::{OpenSession, SessionKind};
use lacuna_protocol::shares::{Holding, MultiplyHeader, SHARE};
use lacuna_shares::pack::unpack;
use lacuna_wire::{Message, Payload};
use lacuna_worker::Options;
use tests::golden::Golden;
use tests::journey::Journey;
use tests::relay::Relay;
use tests::relay::fault::{Fault, Way};
use tests::workers::{Overheard, RunningWorker, fleet_file, is_work, overheard_worker};

const MODEL: &str = "odd";

/// What one worker was told when a session opened, and the requests of that session.
struct Session {
    holding: Holding,
    asked: Vec<(MultiplyHeader, Option<Vec<u8>>)>,
}

/// The sessions of an overheard worker, each request once.
fn sessions(heard: &Overheard) -> Vec<Session> {
    let mut all: Vec<(String, Session)> = Vec::new();
    let mut opened = Vec::new();
    for (path, body) in heard.lock().unwrap().iter() {
        if path.ends_with("/sessions") {
            let open: OpenSession = serde_json::from_slice(body).unwrap();
            let SessionKind::Shares(holding) = open.kind else {
                panic!("{:?}", open.kind);
            };
            opened.push(holding);
        } else if is_work(path) {
            let mut message = Message::<MultiplyHeader>::decode(body).unwrap();
            let share = message.tensors.remove(SHARE).map(|share| match share {
                Payload::Codes { data, .. } => data,
                other => panic!("{other:?}"),
            });
            assert!(message.tensors.is_empty());
            let name = path.rsplit('/').nth(1).unwrap().to_owned();
            if all.last().is_none_or(|(last, _)| *last != name) {
                let holding = opened.remove(0);
                let asked = Vec::new();
                all.push((name, Session { holding, asked }));
            }
            let asked = &mut all.last_mut().unwrap().1.asked;
            // A retry is the same request to the last bit.
            if let Some((before, sent)) = asked
                .iter()
                .find(|(h, _)| h.sequence == message.header.sequence)
            {
                assert_eq!((before, sent), (&message.header, &share));
            } else {
                asked.push((message.header, share));
            }
        }
    }
    all.into_iter().map(|(_, session)| session).collect()
}

/// Two overheard workers and a fleet's file of them, perhaps with a relay before one.
struct Pair {
    seeds: Overheard,
    shares: Overheard,
    urls: [String; 2],
}

impl Pair {
    async fn start() -> Self {
        let (first, seeds) = overheard_worker(MODEL).await;
        let (second, shares) = overheard_worker(MODEL).await;
        Self {
            seeds,
            shares,
            urls: [first, second],
        }
    }

    fn fleet(&self, journey: &Journey) -> PathBuf {
        let [first, second] = self.urls.each_ref().map(String::as_str);
        fleet_file(journey.file("").as_path(), &[(first, None), (second, None)])
    }

    /// All seeds, and all shares that were sent.
    fn all(&self) -> (Vec<[u8; 32]>, Vec<Vec<u8>>) {
        let seeds = sessions(&self.seeds).into_iter();
        let seeds = seeds
            .map(|session| session.holding.seed.unwrap().0)
            .collect();
        let shares = sessions(&self.shares).into_iter();
        let shares = shares.flat_map(|session| {
            assert_eq!(session.holding.seed, None);
            session.asked.into_iter().map(|(_, share)| share.unwrap())
        });
        (seeds, shares.collect())
    }
}

/// Whatever happens, a seed serves one session, and no two requests of a session have one place of its stream.
#[tokio::test(flavor = "multi_thread")]
async fn no_mask_is_ever_used_twice() {
    let journey = Journey::seeded(&Golden::load(MODEL)).with("--steps", "3");
    let journey = journey.with("--scheme", "blind");
    for (failure, pictures) in [
        (None, 1),
        // The same picture twice, in one run and in another.
        (None, 2),
        // The answer was lost, and the request is repeated.
        (
            Some(Fault::Close {
                way: Way::Down,
                after: 0,
            }),
            1,
        ),
        // The worker is lost in the middle, and a spare begins the call again.
        (Some(Fault::Gone), 1),
    ] {
        let mut pair = Pair::start().await;
        let spare = RunningWorker::start(MODEL, &Options::default()).await;
        let lost = failure.map(|failure| Relay::failing(&pair.urls[1], 30, failure));
        if let Some(lost) = &lost {
            pair.urls[1] = lost.url.clone();
        }
        let fleet = pair.fleet(&journey);
        let text = std::fs::read_to_string(&fleet).unwrap();
        let entry = format!(
            "[[worker]]\nurl = \"{}\"\nprovider = \"s\"\nspare = true\n",
            spare.url
        );
        std::fs::write(&fleet, text + &entry).unwrap();
        let run = journey.clone().with("--workers", fleet);
        let run = run
            .with("--seed", "1")
            .with("--count", pictures.to_string());
        run.clone().go().await.unwrap();
        run.go().await.unwrap();
        let (seeds, shares) = pair.all();
        let opened = match failure {
            // The second run begins with the spare.
            Some(Fault::Gone) => 2 + 1,
            _ => 2 * pictures,
        };
        assert_eq!(seeds.len(), opened, "{failure:?}");
        let apart: HashSet<_> = seeds.iter().collect();
        assert_eq!(apart.len(), seeds.len(), "a seed was given twice");
        let apart: HashSet<_> = shares.iter().collect();
        assert_eq!(apart.len(), shares.len(), "a share was sent twice");
        for session in sessions(&pair.seeds) {
            let numbers: HashSet<u64> = session.asked.iter().map(|(h, _)| h.sequence).collect();
            assert_eq!(numbers.len(), session.asked.len());
            assert!(session.asked.iter().all(|(_, share)| share.is_none()));
        }
    }
}

/// The words of share holders are uniform, and so are the differences of any two tensors' words of one layer: of two
/// steps, two halves of a guided batch, two pictures, two sessions, and of a call that was begun again with a spare after
/// its worker was lost. That a mask's second use is seen `uniformity` tests itself.
#[tokio::test(flavor = "multi_thread")]
async fn words_and_their_differences_are_uniform() {
    for (options, bits) in [("", 12), ("--shares ring --share-layers all", 26)] {
        are_uniform(options, bits).await;
    }
}

async fn are_uniform(options: &str, of_bits: u32) {
    let pair = Pair::start().await;
    let (spare, heard_by_spare) = overheard_worker(MODEL).await;
    let journey = Journey::seeded(&Golden::load(MODEL)).with("--steps", "4");
    let journey = journey.with("--scheme", "blind").with("--seed", "1");
    let journey = journey.with_all(options);
    let run = journey.clone().with("--workers", pair.fleet(&journey));
    run.go().await.unwrap();
    let lost = Relay::failing(&pair.urls[1], 30, Fault::Gone);
    let [seeds, _] = &pair.urls;
    let fleet = fleet_file(
        journey.file("").as_path(),
        &[(seeds, None), (&lost.url, None)],
    );
    let text = std::fs::read_to_string(&fleet).unwrap();
    let entry = format!("[[worker]]\nurl = \"{spare}\"\nprovider = \"s\"\nspare = true\n");
    std::fs::write(&fleet, text + &entry).unwrap();
    journey.with("--workers", fleet).go().await.unwrap();

    let sessions = sessions(&pair.shares)
        .into_iter()
        .chain(sessions(&heard_by_spare));
    let mut tensors: BTreeMap<String, usize> = BTreeMap::new();
    let mut words = Vec::new();
    for session in sessions {
        let bits = session.holding.form.bits();
        assert_eq!(bits, of_bits);
        for (header, share) in session.asked {
            let share = share.unwrap();
            *tensors.entry(header.layers.concat()).or_default() += 1;
            let all = unpack(&share, share.len() * 8 / bits as usize, bits).unwrap();
            let [entries, ..] = header.input;
            words.extend(all.chunks_exact(all.len() / entries).map(|entry| Words {
                of: header.layers.concat(),
                bits,
                narrowest: bits,
                words: entry.to_vec(),
            }));
        }
    }
    // Four steps each, and of the call that was lost some layers twice.
    let twice = tensors.values().filter(|tensors| **tensors == 9).count();
    assert!(
        tensors.values().all(|tensors| [8, 9].contains(tensors)),
        "{tensors:?}"
    );
    assert!(twice > 0 && twice < tensors.len(), "{tensors:?}");
    let uniformity = Uniformity::of(&words);
    println!("{uniformity:?}");
    assert!(uniformity.tests >= 400, "{uniformity:?}");
    assert!(uniformity.holds(), "{uniformity:?}");
}
