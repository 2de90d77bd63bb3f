//! Journeys of which one worker is bad: what they end with, and who is named.

use lacuna_worker::Options;

use crate::golden::Golden;
use crate::journey::Journey;
use crate::workers::{RunningWorker, fleet_file};

/// The model of most tests: the one whose pictures take least.
pub const MODEL: &str = "odd";
/// The request that goes wrong, of a hundred or hundreds.
pub const MIDDLE: usize = 40;
/// The schemes whose workers answer features; what may be off with words, `tests/blind.rs` tries.
pub const OF_FEATURES: [&str; 2] = ["ppidm", "resident"];
/// Every scheme that has workers.
pub const SCHEMES: [&str; 3] = ["ppidm", "resident", "blind"];

/// A short journey over `workers`, with their tokens.
pub fn journey(scheme: &str, workers: &[(&str, Option<&str>)]) -> Journey {
    let journey = Journey::golden(&Golden::load(MODEL)).with("--steps", "3");
    let fleet = fleet_file(journey.file("").as_path(), workers);
    // One lane, so that the number of the request that goes wrong says which it is.
    let journey = journey.with("--scheme", scheme).with("--lanes", "false");
    // What a lost worker ends is what is tried.
    let journey = journey.with("--on-loss", "fewer");
    journey.with("--workers", fleet)
}

/// What a journey by the paper's scheme over a good worker and the one at `bad` ends with.
pub async fn failure_with(bad: &str, token: Option<&str>) -> String {
    failure_of(SCHEMES[0], bad, token).await
}

/// What a journey over a good worker and the one at `bad` ends with. That no file is left is seen
/// to by `go`.
pub async fn failure_of(scheme: &str, bad: &str, token: Option<&str>) -> String {
    let good = RunningWorker::start(MODEL, &Options::default()).await;
    let mut workers = [(good.url.as_str(), None), (bad, token)];
    let first = journey(scheme, &workers)
        .go()
        .await
        .err()
        .expect("a failure");
    check_line(&first, bad, &good.url);
    // Their order makes no difference to who is named.
    workers.reverse();
    let journey = journey(scheme, &workers);
    if let Err(second) = journey.go().await {
        check_line(&second, bad, &good.url);
    }
    // Whatever happened, nobody who was well is left with a session.
    good.is_left().await;
    first
}

/// That `error` is one short line, fit for a terminal, and names the worker that is bad and not the good one.
#[track_caller]
pub fn check_line(error: &str, bad: &str, good: &str) {
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.chars().count() < 500, "{error}");
    assert!(!error.chars().any(char::is_control), "{error:?}");
    assert!(error.contains(bad), "{bad} is not in: {error}");
    assert!(!error.contains(good), "{good} is in: {error}");
}

/// That `message` is one line that holds all of `parts`.
#[track_caller]
pub fn assert_names(message: &str, parts: &[&str]) {
    assert_eq!(message.lines().count(), 1, "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}
