//! Shares that come in bands: an answer that begins before its request has ended, the same words as in one piece, and
//! what is refused of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use lacuna_model::device::Precision;
use lacuna_orchestrator::schemes::Sizes;
use lacuna_orchestrator::schemes::blind::options::Layers;
use lacuna_orchestrator::schemes::blind::placement::sent;
use lacuna_orchestrator::schemes::blind::sent::Sent;
use lacuna_protocol::session::{OpenSession, SessionKind};
use lacuna_protocol::shares::{Form, Holding, MultiplyHeader, PRODUCT, SHARE, Seed};
use lacuna_protocol::version::PROTOCOL;
use lacuna_shares::bands::Band;
use lacuna_shares::stream::Masks;
use lacuna_wire::head::{self, Head};
use lacuna_wire::{Message, Payload};
use lacuna_worker::Options;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tests::caller::{Answer, Caller, PATIENCE};
use tests::golden::Golden;
use tests::journey::Journey;
use tests::relay::Relay;
use tests::relay::fault::{Fault, Way};
use tests::workers::{RunningWorker, fleet_file, model};

const MODEL: &str = "odd";
const SIDE: usize = 24;
const BITS: u32 = 12;
const DOWN: u32 = 14;

fn large() -> Options {
    Options {
        max_latents: [2, SIDE, SIDE],
        ..Options::default()
    }
}

async fn open(caller: &Caller, seed: Option<Seed>) -> String {
    let body = OpenSession {
        protocol: PROTOCOL,
        model: caller.info().await.models[0].digest.clone(),
        kind: SessionKind::Shares(Holding {
            form: Form::Carry {
                bits: BITS,
                range: 13,
                fraction: 1,
            },
            weights: Precision::F32,
            seed,
        }),
        picture: None,
    };
    let request = caller.request(Method::POST, "v1/sessions").json(&body);
    let answer = Caller::send(request).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let opened: Value = serde_json::from_slice(&answer.body).unwrap();
    opened["session"].as_str().unwrap().to_owned()
}

/// All that workers can be sent of the model.
fn all() -> Vec<Sent> {
    let unet = model(MODEL).unet().clone();
    let sizes = Sizes {
        latents: [2, SIDE, SIDE],
        levels: unet.levels(),
        tokens: 77,
    };
    sent(&unet, &sizes, Layers::All).unwrap()
}

/// A request for `sent` in so many bands, and its words.
fn request(sequence: u64, sent: &Sent, bands: usize) -> (Message<MultiplyHeader>, Vec<Band>) {
    let bands = sent.bands(bands).unwrap();
    let product = sent.product(&bands, DOWN);
    let words = Masks::fresh().unwrap();
    let words = { words }.draw(sent.features(), BITS).unwrap();
    (message(sequence, sent, &product, &words, &bands), bands)
}

fn message(
    sequence: u64,
    sent: &Sent,
    product: &lacuna_orchestrator::fleet::client::Product,
    words: &[i32],
    bands: &[Band],
) -> Message<MultiplyHeader> {
    let rows = bands.iter().map(|band| band.input.clone());
    let packed = sent.planes().pack(words, rows, BITS).unwrap();
    Message {
        header: MultiplyHeader {
            sequence,
            layers: product.layers.clone(),
            input: product.input,
            enlarged: product.enlarged,
            bands: bands.len(),
        },
        tensors: [(SHARE.to_owned(), Payload::of_codes(packed))].into(),
    }
}

async fn multiply(caller: &Caller, session: &str, body: Vec<u8>) -> Answer {
    let path = format!("v1/sessions/{session}/multiply");
    Caller::send(caller.request(Method::POST, &path).body(body)).await
}

/// The words of an answer.
#[track_caller]
fn words(answer: &[u8], sent: &Sent, bands: &[Band]) -> Vec<Vec<i32>> {
    let mut message = Message::<Value>::decode(answer).unwrap();
    match message.take(PRODUCT).unwrap() {
        Payload::Codes { data, .. } => sent.read(&data, bands, DOWN).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Of convolutions of every kind, with and without a step, enlarged and not, and of linear maps.
#[tokio::test(flavor = "multi_thread")]
async fn bands_give_the_words_that_one_piece_gives() {
    let worker = RunningWorker::start(MODEL, &large()).await;
    let caller = Caller::new(&worker);
    let session = open(&caller, None).await;
    let (mut sequence, mut enlarged, mut several) = (0, 0, 0);
    for sent in all() {
        let mut masks = Masks::fresh().unwrap();
        let share = masks.draw(sent.features(), BITS).unwrap();
        let mut before: Option<Vec<Vec<i32>>> = None;
        for number in [1, 2, 3, sent.input[1].min(16)] {
            if number > sent.input[1] {
                continue;
            }
            sequence += 1;
            let bands = sent.bands(number).unwrap();
            let product = sent.product(&bands, DOWN);
            let body = message(sequence, &sent, &product, &share, &bands);
            let answer = multiply(&caller, &session, body.encode().unwrap()).await;
            let case = format!("{} in {number} bands", sent.name());
            let text = String::from_utf8_lossy(&answer.body);
            assert_eq!(answer.status, StatusCode::OK, "{case}: {text}");
            let got = words(&answer.body, &sent, &bands);
            // Sums of other rows beside may be added in another order: a last bit apart before they are rounded.
            let before = before.get_or_insert_with(|| got.clone());
            let pairs = before.concat().into_iter().zip(got.concat());
            let apart = pairs.filter(|(a, b)| a != b).count();
            assert!(apart * 100 <= sent.products(), "{case}: {apart} words");
        }
        enlarged += usize::from(body_is_enlarged(&sent));
        several += usize::from(sent.layers.len() == 3);
    }
    assert!(enlarged > 0 && several > 0 && sequence > 100, "{sequence}");
}

fn body_is_enlarged(sent: &Sent) -> bool {
    sent.product(&sent.bands(1).unwrap(), DOWN)
        .enlarged
        .is_some()
}

/// A convolution of the finest level.
fn fine() -> Sent {
    let wide = |sent: &Sent| sent.input[1] == SIDE && sent.layers.len() == 1 && sent.values() > 1;
    all().into_iter().find(wide).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_begins_before_its_request_has_ended() {
    let worker = RunningWorker::start(MODEL, &large()).await;
    let caller = Caller::new(&worker);
    let session = open(&caller, None).await;
    let sent = fine();
    let (message, bands) = request(1, &sent, 4);
    let body = message.encode().unwrap();
    let address = worker.url.strip_prefix("http://").unwrap();
    let address = address.trim_end_matches('/').to_owned();
    let halfway = head::len(&body).unwrap().unwrap();
    let halfway = halfway + sent.bytes_up(&bands[..1], BITS);
    let whole = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let start = format!(
            "POST /v1/sessions/{session}/multiply HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(start.as_bytes()).unwrap();
        stream.write_all(&body[..halfway]).unwrap();
        // The first band's words are here before the second band has gone.
        let mut got = vec![0; 1 << 16];
        let n = stream.read(&mut got).unwrap();
        got.truncate(n);
        assert!(
            got.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&got)
        );
        std::thread::sleep(Duration::from_millis(100));
        stream.write_all(&body[halfway..]).unwrap();
        stream.read_to_end(&mut got).unwrap();
        let end = got.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        // A retry is answered with the kept reply.
        (got.split_off(end), session, body)
    });
    let (got, session, body) = whole.await.unwrap();
    assert_eq!(words(&got, &sent, &bands).len(), 1);
    assert_eq!(multiply(&caller, &session, body).await.body, got);
    let (other, _) = request(1, &sent, 4);
    let refusal = multiply(&caller, &session, other.encode().unwrap())
        .await
        .refusal(409);
    assert!(refusal.contains("was answered already"), "{refusal}");
    let (later, _) = request(3, &sent, 4);
    multiply(&caller, &session, later.encode().unwrap())
        .await
        .refusal(409);
    let (next, _) = request(2, &sent, 1);
    let next = multiply(&caller, &session, next.encode().unwrap()).await;
    assert_eq!(next.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_contradicts_itself_is_refused_and_the_next_is_not() {
    let worker = RunningWorker::start(MODEL, &large()).await;
    let caller = Caller::new(&worker);
    let session = open(&caller, None).await;
    let drawn = open(&caller, Some(Seed([7; 32]))).await;
    let sent = fine();
    let good = || request(1, &sent, 2).0;
    let changed = |change: &dyn Fn(&mut MultiplyHeader)| {
        let mut message = good();
        change(&mut message.header);
        message.encode().unwrap()
    };
    let tensors = |tensors: &[(&str, usize)]| {
        let mut message = good();
        let codes = tensors
            .iter()
            .map(|(name, n)| ((*name).to_owned(), Payload::of_codes(vec![0; *n])));
        message.tensors = codes.collect();
        message.encode().unwrap()
    };
    let size = match &good().tensors[SHARE] {
        Payload::Codes { data, .. } => data.len(),
        other => panic!("{other:?}"),
    };
    let body = request(1, &sent, 1).0.encode().unwrap();
    let other = all()
        .into_iter()
        .find(|other| other.input != sent.input)
        .unwrap();
    let largest = all().into_iter().filter(|sent| sent.layers.len() == 1);
    let largest = largest.max_by_key(Sent::products).unwrap();
    let mut three_times = request(1, &largest, 1).0;
    three_times.header.layers = vec![largest.name().to_owned(); 3];
    let cases = [
        (changed(&|h| h.bands = 0), "0 bands"),
        (changed(&|h| h.bands = 17), "17 bands"),
        (changed(&|h| h.bands = usize::MAX), "bands"),
        (changed(&|h| h.layers.clear()), "0 layers"),
        (
            changed(&|h| h.layers = vec![h.layers[0].clone(); 4]),
            "4 layers",
        ),
        (
            changed(&|h| h.layers.push(other.name().to_owned())),
            "for the largest picture",
        ),
        (three_times.encode().unwrap(), "values together"),
        (changed(&|h| h.layers = vec!["none".into()]), "\"none\""),
        (changed(&|h| h.input = [usize::MAX; 3]), "largest picture"),
        (changed(&|h| h.input[1] = 0), "largest picture"),
        (
            changed(&|h| h.enlarged = Some([SIDE, SIDE])),
            "largest picture",
        ),
        (tensors(&[]), "is sent its share"),
        (tensors(&[("y", size)]), "a share is x"),
        (tensors(&[(SHARE, size - 1)]), "a share is x"),
        (tensors(&[(SHARE, size), ("z", 1)]), "is not asked for"),
        (body[..body.len() - 1].to_vec(), "early"),
        (body[..20].to_vec(), "early"),
        (body[..7].to_vec(), "no header"),
        (Vec::new(), "no header"),
        (vec![255; 100], "at most"),
        ([&body[..], &[0]].concat(), "after its tensor"),
    ];
    for (body, named) in cases {
        let refusal = multiply(&caller, &session, body).await.refusal(422);
        assert!(refusal.contains(named), "{named:?} is not in {refusal}");
    }
    // A seed holder is sent nothing, and answers in one piece.
    for (message, named) in [
        (good().encode().unwrap(), "one band"),
        (request(1, &sent, 1).0.encode().unwrap(), "draws its share"),
    ] {
        let mut refusal = multiply(&caller, &drawn, message).await.refusal(422);
        refusal += " one band";
        assert!(refusal.contains(named), "{refusal}");
    }
    let head = Head {
        header: MultiplyHeader {
            bands: 1,
            ..good().header
        },
        tensor: None,
    };
    let answer = multiply(&caller, &drawn, head.encode().unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK);
    // Another kind of session does not multiply.
    let layers = caller.open().await;
    let refusal = multiply(&caller, &layers, body.clone()).await.refusal(422);
    assert!(refusal.contains("ask it to run"), "{refusal}");
    let answer = multiply(&caller, &session, body).await;
    assert_eq!(answer.status, StatusCode::OK);
}

/// Latents large enough for bands, over a connection that breaks in the middle of an answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_in_bands_survives_a_broken_connection() {
    let journey = Journey::seeded(&Golden::load(MODEL)).with("--steps", "1");
    let journey = journey.with("--width", "512").with("--height", "512");
    let local = journey.go().await.unwrap();
    let [first, second] = [
        RunningWorker::start(MODEL, &Options::default()).await,
        RunningWorker::start(MODEL, &Options::default()).await,
    ];
    let within = Fault::Close {
        way: Way::Down,
        after: 40_000,
    };
    let relay = Relay::failing(&second.url, 2, within);
    let urls = [(first.url.as_str(), None), (relay.url.as_str(), None)];
    let fleet = fleet_file(&journey.file(""), &urls);
    let blind = journey.with("--scheme", "blind").with("--workers", fleet);
    let blind = blind.with("--share-bits", "quality").go().await.unwrap();
    assert!(relay.faults() >= 1);
    let psnr = blind.latents_psnr(&local);
    println!("{psnr:.1} dB");
    assert!(psnr >= 50.0, "{psnr}");
}
