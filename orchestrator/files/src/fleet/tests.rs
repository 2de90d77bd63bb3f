//! What a fleet file may say, and what is said of one that may not.

use super::*;

fn parse(text: &str) -> Result<FleetConfig, String> {
    FleetConfig::parse(text, &|_| None)
}

#[test]
fn the_example_is_read() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../configs/fleet.example.toml"
    );
    let text = std::fs::read_to_string(path).unwrap();
    // The example takes its tokens from variables that are not set here: read the names as tokens.
    let text = text.replace("token_env", "token");
    let fleet = parse(&text).unwrap();
    assert_eq!(fleet.workers.len(), 4);
    assert!(fleet.workers.iter().all(|w| w.token.is_some()));
    assert_eq!(fleet.spares.len(), 1);
}

#[test]
fn a_spare_takes_the_place_of_a_lost_worker() {
    let entry = |name: &str, more: &str| {
        format!("[[worker]]\nurl = \"http://{name}\"\nprovider = \"{name}\"\n{more}\n")
    };
    let text = entry("a", "") + &entry("s", "spare = true") + &entry("b", "");
    let providers = |fleet: &FleetConfig| {
        let each = fleet.workers.iter().map(|w| w.provider.clone());
        each.collect::<Vec<_>>().join("")
    };
    let fleet = parse(&text).unwrap();
    assert_eq!(providers(&fleet), "ab");
    let without = |fleet: &FleetConfig, url: &str| fleet.without(url).into_iter().next();
    assert!(without(&fleet, "http://c/").is_none());
    let fleet = without(&fleet, "http://a/").unwrap();
    assert_eq!(providers(&fleet), "sb");
    let fleet = without(&fleet, "http://b/").unwrap();
    assert_eq!(providers(&fleet), "s");
    assert!(without(&fleet, "http://s/").is_none());
}

#[test]
fn whoever_learns_least_steps_in_first() {
    let entry = |url: &str, provider: &str, spare: bool| {
        format!("[[worker]]\nurl = \"http://{url}\"\nprovider = \"{provider}\"\nspare = {spare}\n")
    };
    let text = entry("a", "a", false)
        + &entry("b", "b", false)
        + &entry("b2", "b", true)
        + &entry("c", "c", true)
        + &entry("a2", "a", true);
    let fleet = parse(&text).unwrap();
    let orders = |url: &str| -> Vec<String> {
        let urls = |fleet: FleetConfig| -> Vec<String> {
            let hosts = fleet
                .workers
                .iter()
                .map(|w| w.url.host_str().unwrap_or_default().to_owned());
            hosts.collect()
        };
        let all = fleet.without(url).into_iter();
        all.map(|fleet| urls(fleet).join(" ")).collect()
    };
    assert_eq!(orders("http://a/"), ["a2 b", "c b", "b2 b", "b"]);
    assert_eq!(orders("http://b/"), ["a b2", "a c", "a a2", "a"]);
}

fn entries(workers: &[(&str, &str)]) -> String {
    let entry = |(url, provider): &(&str, &str)| {
        format!("[[worker]]\nurl = \"{url}\"\nprovider = \"{provider}\"\n")
    };
    workers.iter().map(entry).collect()
}

#[test]
fn a_plan_needs_no_tokens() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../configs/fleet.example.toml"
    );
    let fleet = FleetConfig::to_plan_with(Path::new(path)).unwrap();
    assert_eq!((fleet.workers.len(), fleet.spares.len()), (4, 1));
    let error = FleetConfig::from_file(Path::new(path))
        .unwrap_err()
        .to_string();
    assert!(error.contains("(token_env) is not set"), "{error}");
}

#[test]
fn one_worker_is_not_two_providers() {
    for [a, b] in [
        ["http://h/", "http://H:80"],
        ["http://h", "http://h./base"],
        ["https://h", "https://h:443/"],
        ["http://localhost:7700", "http://127.0.0.1:7700"],
        ["http://127.0.0.1:7700", "http://[::1]:7700"],
        ["http://127.0.0.1:7700", "http://127.1:7700"],
        ["http://10.0.0.1", "http://[::ffff:10.0.0.1]"],
    ] {
        let error = parse(&entries(&[(a, "p"), (b, "q")])).unwrap_err();
        assert!(error.contains("two providers (p and q)"), "{error}");
        // A spare is a worker, too.
        let spare = entries(&[(a, "p"), (b, "q")]) + "spare = true\n";
        assert!(parse(&spare).is_err(), "{a} {b}");
        parse(&entries(&[(a, "p"), (b, "p")])).unwrap();
    }
}

const PIN: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

#[test]
fn one_key_is_not_two_providers() {
    let two = |providers: [&str; 2]| {
        let each = ["https://a", "https://b"].iter().zip(providers);
        let each =
            each.map(|(url, provider)| entries(&[(url, provider)]) + &format!("pin = \"{PIN}\"\n"));
        parse(&each.collect::<String>())
    };
    let error = two(["p", "q"]).unwrap_err();
    assert!(
        error.contains("one public key") && error.contains("(p and q)"),
        "{error}"
    );
    let fleet = two(["p", "p"]).unwrap();
    assert_eq!(fleet.workers[1].trust.pin.unwrap().to_string(), PIN);
}

#[test]
fn whom_to_trust_is_read_from_the_fleet_file_s_folder() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fleet.toml");
    let entry = entries(&[("https://a", "p")]);
    let more = "ca = \"ca.pem\"\nclient_cert = \"/me.pem\"\nclient_key = \"me.key\"\n";
    std::fs::write(&file, entry + more + "token_file = \"tokens\"\n").unwrap();
    let error = FleetConfig::from_file(&file).unwrap_err().to_string();
    assert!(error.contains("no token in tokens (token_file)"), "{error}");
    FleetConfig::to_plan_with(&file).unwrap();
    std::fs::write(folder.path().join("tokens"), "# of a\n\n secret \nolder\n").unwrap();
    let worker = &FleetConfig::from_file(&file).unwrap().workers[0];
    assert_eq!(worker.token.as_deref(), Some("secret"));
    assert_eq!(worker.trust.authorities, Some(folder.path().join("ca.pem")));
    let own = [PathBuf::from("/me.pem"), folder.path().join("me.key")];
    assert_eq!(worker.trust.own, Some(own));
}

#[test]
fn one_machine_of_several_providers_is_told_but_for_this_one() {
    let shared = |workers: &[(&str, &str)]| {
        let config = parse(&entries(workers)).unwrap();
        let hosts = config.shared_hosts().into_iter();
        hosts
            .map(|(host, providers)| format!("{host}: {}", providers.join(" ")))
            .collect::<Vec<_>>()
    };
    let far = [("http://h:1", "p"), ("http://h:2", "q"), ("http://i", "r")];
    assert_eq!(shared(&far), ["h: p q"]);
    let own = [("http://127.0.0.1:1", "p"), ("http://localhost:2", "q")];
    assert_eq!(shared(&own), [""; 0]);
    assert_eq!(shared(&[("http://h:1", "p"), ("http://h:2", "p")]), [""; 0]);
}

#[test]
fn what_an_address_must_not_hold_is_not_shown() {
    for url in [
        "http://user:secret@h",
        "http://secret@h",
        "http://user:secret@h:port",
        "ftp://user:secret@h",
        "http://h/?key=secret",
    ] {
        let error = parse(&entries(&[(url, "p")])).unwrap_err();
        assert!(error.contains("worker 1: url"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    let error = parse(&entries(&[("http://user:secret@h", "p")])).unwrap_err();
    assert!(error.contains("token_env"), "{error}");
    let token = entries(&[("http://h", "p")]) + "token = \"sec\\nret\"\n";
    let error = parse(&token).unwrap_err();
    assert!(error.contains("token") && !error.contains("sec"), "{error}");
}

#[test]
fn what_is_off_in_the_file_shows_no_token() {
    let entry = |line: &str| format!("[[worker]]\nurl = \"http://h\"\nprovider = \"p\"\n{line}\n");
    for (line, parts) in [
        ("tokens = \"SECRET\"", ["line 4, column 1", "tokens"]),
        (
            "token = \"SECRET\"\ntoken = \"SECRET\"",
            ["line 5", "duplicate"],
        ),
        ("token = \"SECRET", ["line 4", "string"]),
        ("token = \"SECRET\\q\"", ["line 4", "escape"]),
        ("token = 98765", ["line 4, column 9 (token)", "string"]),
        ("spare = \"SECRET\"", ["line 4", "bool"]),
    ] {
        let error = parse(&entry(line)).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert!(
            !error.contains("SECRET") && !error.contains("98765"),
            "{error}"
        );
    }
    let error = parse(&entries(&[("http://user:SECRET%40h:7700", "p")]));
    assert!(!error.unwrap_err().contains("SECRET"));
}

/// Whatever a file has become of by accident, it is read or refused, in words that hold no token.
#[test]
fn a_garbled_file_is_refused_and_shows_no_token() {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    let entry = "[[worker]]\nurl = \"https://h.example/base\"\nprovider = \"p\"\ntoken = \"SECRET\"\nspare = false\n";
    let whole = format!("# fleet\n{entry}\n{entry}").into_bytes();
    let bits = b"[]{}\"'=#,.\\\n\0\xff:/@?%0 aSECRET";
    let mut rng = StdRng::seed_from_u64(7);
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..rng.random_range(1..5) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes.truncate(at.max(1)),
                1 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, bits[rng.random_range(0..bits.len())]),
            }
        }
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        if let Err(error) = parse(&text) {
            refused += 1;
            assert!(!error.contains("SECRET"), "{text}\n{error}");
        }
    }
    assert!(refused > 10_000, "{refused}");
}

#[test]
fn a_bad_file_names_the_worker_and_the_field() {
    for (text, part) in [
        ("", "0 [[worker]]"),
        (
            "[[worker]]\nurl = \"http://a\"\nprovider = \"p\"\nspare = true",
            "0 [[worker]] entries that are no spares",
        ),
        ("[[worker]]\nurl = \"http://a\"", "provider"),
        (
            "[[worker]]\nurl = \"nowhere\"\nprovider = \"p\"",
            "worker 1: url \"nowhere\"",
        ),
        (
            "[[worker]]\nurl = \"ftp://a\"\nprovider = \"p\"",
            "neither http nor https",
        ),
        (
            "[[worker]]\nurl = \"https://a\"\nprovider = \"p\"\npin = \"md5:00\"",
            "worker 1: pin: \"md5:00\" is no pin",
        ),
        (
            "[[worker]]\nurl = \"http://a\"\nprovider = \"p\"\nca = \"ca.pem\"",
            "are for https",
        ),
        (
            "[[worker]]\nurl = \"https://a\"\nprovider = \"p\"\nclient_key = \"k\"",
            "belong together",
        ),
        (
            "[[worker]]\nurl = \"https://a\"\nprovider = \"p\"\ntoken = \"x\"\ntoken_file = \"y\"",
            "more than one of token",
        ),
        (
            "[[worker]]\nurl = \"http://a\"\nprovider = \"p\"\ntokn = \"x\"",
            "tokn",
        ),
        (
            "[[worker]]\nurl = \"http://a\"\nprovider = \"p\"\ntoken_env = \"LACUNA_NOT_SET\"",
            "LACUNA_NOT_SET",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}
