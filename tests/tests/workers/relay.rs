//! The relay that other tests lean on: each of its faults really happens, and a seed draws the same ones again.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use tests::relay::fault::{Draws, Fault, Kind, Way};
use tests::relay::{Relay, Request};
use tests::workers::serve_routes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const WORK: &str = "/v1/sessions/a/run";
/// What a test waits for at most.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server that answers work with what came, backwards, and all bodies that came.
async fn server() -> (String, Arc<Mutex<Vec<Bytes>>>) {
    let heard: Arc<Mutex<Vec<Bytes>>> = Arc::default();
    let ear = heard.clone();
    let answer = post(async move |body: Bytes| {
        ear.lock().unwrap().push(body.clone());
        body.iter().rev().copied().collect::<Vec<u8>>()
    });
    (serve_routes(Router::new().route(WORK, answer)).await, heard)
}

fn body() -> Vec<u8> {
    (0..3000u32).map(|i| (i % 251) as u8).collect()
}

fn backwards() -> Vec<u8> {
    body().into_iter().rev().collect()
}

/// What comes back for `count` requests by one connection, until it ends, and the error that it ends with.
async fn ask(relay: &Relay, count: usize) -> (Vec<u8>, Option<ErrorKind>) {
    let address = relay.url.trim_start_matches("http://");
    let connected = TcpStream::connect(address.trim_end_matches('/')).await;
    let mut stream = match connected {
        Ok(stream) => stream,
        Err(error) => return (Vec::new(), Some(error.kind())),
    };
    let body = body();
    let mut came = Vec::new();
    for left in (0..count).rev() {
        let connection = if left == 0 { "close" } else { "keep-alive" };
        let head = format!(
            "POST {WORK} HTTP/1.1\r\nHost: a\r\nConnection: {connection}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        // A connection that was ended meanwhile says so when it is read.
        let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
        let begun = came.len();
        loop {
            let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut came));
            match read.await.expect("an answer, or an end") {
                Ok(0) => return (came, None),
                Ok(_) => {}
                Err(error) => return (came, Some(error.kind())),
            }
            if left > 0 && is_whole(&came[begun..]) {
                break;
            }
        }
    }
    (came, None)
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_lowercase();
    let announced = text.split_once("content-length: ");
    let length = announced.and_then(|(_, rest)| rest.lines().next()?.parse::<usize>().ok());
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
    matches!((head, length), (Some(head), Some(length)) if answer.len() >= head + 4 + length)
}

/// The body of the one answer in `came`.
fn answered(came: &[u8]) -> &[u8] {
    let head = came.windows(4).position(|four| four == b"\r\n\r\n");
    &came[head.expect("a head") + 4..]
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_fault_everything_passes_and_is_counted() {
    let (url, heard) = server().await;
    for relay in [
        Relay::start(&url, [Duration::ZERO; 2], |_| None),
        Relay::counting(&url),
    ] {
        let (came, error) = ask(&relay, 1).await;
        assert_eq!((answered(&came), error), (&backwards()[..], None));
        assert_eq!(relay.faults(), 0);
        let [up, down] = relay.passed();
        assert!(up > 3000 && up < 3200, "{up}");
        assert_eq!(down, came.len() as u64);
    }
    assert_eq!(*heard.lock().unwrap(), [body(), body()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_take_their_way_s_latency_and_stalls_and_drips_beside() {
    let (url, _) = server().await;
    let ms = Duration::from_millis;
    let stall = |way, after| Fault::Stall {
        way,
        after,
        time: ms(200),
    };
    let drip = |way| Fault::Drip {
        way,
        piece: 300,
        pause: ms(20),
    };
    for (latency, fault, least) in [
        ([ms(40), ms(80)], None, ms(2 * 120)),
        ([ms(0); 2], Some(stall(Way::Up, 0)), ms(200)),
        ([ms(0); 2], Some(stall(Way::Up, 1000)), ms(200)),
        ([ms(0); 2], Some(stall(Way::Down, 0)), ms(200)),
        ([ms(0); 2], Some(stall(Way::Down, 1000)), ms(200)),
        ([ms(0); 2], Some(drip(Way::Up)), ms(10 * 20)),
        ([ms(0); 2], Some(drip(Way::Down)), ms(10 * 20)),
    ] {
        let at_first = move |request: &Request| fault.filter(|_| request.work == Some(1));
        let relay = Relay::start(&url, latency, at_first);
        let begun = Instant::now();
        let (came, error) = ask(&relay, 2).await;
        let took = begun.elapsed();
        assert!(took >= least, "{latency:?}, {fault:?}: {took:?}");
        assert!(came.ends_with(&backwards()) && error.is_none(), "{fault:?}");
        assert_eq!(relay.faults(), usize::from(fault.is_some()));
        assert_eq!(relay.works(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_cut_short_at_its_byte() {
    let (url, heard) = server().await;
    for after in [0, 20, 1000] {
        let down = Fault::Close {
            way: Way::Down,
            after,
        };
        let relay = Relay::failing(&url, 1, down);
        let (came, error) = ask(&relay, 1).await;
        assert_eq!((came.len(), error, relay.faults()), (after, None, 1));
    }
    // The work was done each time; of a request that is cut short it is not.
    assert_eq!(heard.lock().unwrap().len(), 3);
    let up = Fault::Close {
        way: Way::Up,
        after: 1000,
    };
    let relay = Relay::failing(&url, 1, up);
    let (came, _) = ask(&relay, 1).await;
    assert_eq!((came.len(), relay.faults()), (0, 1));
    assert_eq!(relay.passed(), [1000, 0]);
    assert_eq!(heard.lock().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_reset() {
    let (url, _) = server().await;
    for (way, after) in [(Way::Up, 500), (Way::Down, 0), (Way::Down, 500)] {
        let relay = Relay::failing(&url, 2, Fault::Reset { way, after });
        let (came, error) = ask(&relay, 3).await;
        assert_eq!(error, Some(ErrorKind::ConnectionReset), "{way:?} {after}");
        assert!(came.len() < 2 * 3000, "{way:?} {after}: {}", came.len());
        assert_eq!(relay.faults(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_gone_stays_so() {
    let (url, heard) = server().await;
    let relay = Relay::failing(&url, 2, Fault::Gone);
    let (came, _) = ask(&relay, 3).await;
    assert!(is_whole(&came) && answered(&came) == backwards());
    assert_eq!(heard.lock().unwrap().len(), 2);
    let (came, error) = ask(&relay, 1).await;
    assert_eq!((came.len(), error), (0, Some(ErrorKind::ConnectionRefused)));
    let relay = Relay::start(&url, [Duration::ZERO; 2], |_| None);
    relay.cut();
    assert!(ask(&relay, 1).await.0.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_cut_off_says_nothing_and_connections_stay() {
    let (url, heard) = server().await;
    let relay = Relay::failing(&url, 2, Fault::Silent);
    let hears = |relay, count| {
        let asked = ask(relay, count);
        async {
            tokio::time::timeout(Duration::from_millis(300), asked)
                .await
                .is_ok()
        }
    };
    assert!(!hears(&relay, 3).await);
    // It has done the work that nobody hears of.
    assert_eq!((relay.faults(), heard.lock().unwrap().len()), (1, 2));
    assert!(!hears(&relay, 1).await);
    assert_eq!(heard.lock().unwrap().len(), 2);
    let (asked, ()) = tokio::join!(ask(&relay, 1), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        relay.cut();
    });
    assert!(asked.0.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bit_of_a_body_is_another() {
    let (url, heard) = server().await;
    let differ = |a: &[u8], b: &[u8]| -> u32 {
        assert_eq!(a.len(), b.len());
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| (a ^ b).count_ones()).sum()
    };
    for bit in [0, 12_345, 24_000 - 1, u64::MAX] {
        for way in [Way::Up, Way::Down] {
            let relay = Relay::failing(&url, 1, Fault::Flip { way, bit });
            let (came, _) = ask(&relay, 1).await;
            assert_eq!(differ(answered(&came), &backwards()), 1, "{way:?} {bit}");
            let there = heard.lock().unwrap().pop().unwrap();
            let flipped = u32::from(way == Way::Up);
            assert_eq!(differ(&there, &body()), flipped, "{way:?} {bit}");
            assert_eq!(relay.faults(), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_comes_twice_and_is_answered_once() {
    let (url, heard) = server().await;
    let relay = Relay::failing(&url, 1, Fault::Duplicate);
    let (came, error) = ask(&relay, 1).await;
    assert_eq!((answered(&came), error), (&backwards()[..], None));
    let twice = async {
        while heard.lock().unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, twice).await.unwrap();
    assert_eq!(*heard.lock().unwrap(), [body(), body()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_refusals_reaches_no_worker() {
    let (url, heard) = server().await;
    let relay = Relay::failing(&url, 2, Fault::Refuse { requests: 3 });
    let (came, error) = ask(&relay, 5).await;
    let text = String::from_utf8_lossy(&came);
    let statuses: Vec<&str> = text
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|answer| &answer[..3])
        .collect();
    assert_eq!(statuses, ["200", "503", "503", "503", "200"]);
    assert_eq!((error, heard.lock().unwrap().len()), (None, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_draws_the_same_faults() {
    let (url, _) = server().await;
    let draws = |seed| Draws {
        seed,
        rate: 0.4,
        // What ends no connection, and takes no time.
        kinds: vec![Kind::Flip, Kind::Duplicate],
    };
    let mut logs = Vec::new();
    for seed in [7, 7, 8] {
        let relay = Relay::drawing(&url, draws(seed));
        for _ in 0..3 {
            ask(&relay, 8).await;
        }
        logs.push(relay.struck());
    }
    assert!(logs[0].len() > 3 && logs[0].len() < 20, "{:?}", logs[0]);
    assert_eq!(logs[0], logs[1]);
    assert_ne!(logs[0], logs[2]);
}

#[test]
fn every_kind_is_drawn_about_as_often_as_is_said() {
    let draws = Draws {
        seed: 1,
        rate: 0.1,
        kinds: Kind::ALL.to_vec(),
    };
    let all: Vec<Fault> = (0..100)
        .flat_map(|connection| (0..100).map(move |message| (connection, message)))
        .filter_map(|(connection, message)| draws.fault(connection, message))
        .collect();
    assert!((800..1200).contains(&all.len()), "{}", all.len());
    let of = |is: fn(&Fault) -> bool| all.iter().filter(|fault| is(fault)).count();
    // Two kinds are stalls, one in the middle.
    for (least, is) in [
        (
            150,
            (|f| matches!(f, Fault::Stall { .. })) as fn(&Fault) -> bool,
        ),
        (50, |f| matches!(f, Fault::Stall { after: 1.., .. })),
        (50, |f| matches!(f, Fault::Reset { .. })),
        (50, |f| matches!(f, Fault::Close { .. })),
        (50, |f| matches!(f, Fault::Drip { .. })),
        (50, |f| matches!(f, Fault::Flip { .. })),
        (50, |f| matches!(f, Fault::Duplicate)),
        (50, |f| matches!(f, Fault::Refuse { .. })),
    ] {
        assert!(of(is) >= least, "{all:?}");
    }
    let never = Draws {
        kinds: Vec::new(),
        rate: 1.0,
        ..draws
    };
    assert_eq!(never.fault(0, 0), None);
}
