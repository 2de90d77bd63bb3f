//! Any text as the file that lists the workers: it is refused in one line, or lists workers that can be asked.

#![no_main]

use lacuna_files::fleet::{FleetConfig, Kept, MAX_WORKERS};
use libfuzzer_sys::fuzz_target;

/// What an environment variable or a file holds, if there is one.
fn lookup(kept: Kept<'_>) -> Option<String> {
    match kept {
        Kept::Variable(name) => (!name.is_empty()).then(|| name.to_owned()),
        Kept::File(path) => path.to_str().map(str::to_owned),
    }
}

fuzz_target!(|text: &str| {
    let config = match FleetConfig::parse(text, &lookup) {
        Ok(config) => config,
        Err(reason) => {
            assert!(!reason.is_empty() && !reason.contains('\n'), "{reason:?}");
            return;
        }
    };
    assert!((1..=MAX_WORKERS).contains(&config.workers.len()));
    // What is wrong further down is told without the tokens above.
    let wrong = FleetConfig::parse(&format!("{text}\n[[worker]]\nurl = 3\n"), &lookup);
    let reason = wrong.expect_err("a number is no address");
    for worker in config.everybody() {
        let secret = worker.token.as_ref().is_some_and(|t| t.contains("SECRET"));
        assert!(!secret || !reason.contains("SECRET"), "{reason}");
        let url = &worker.url;
        assert!(url.host_str().is_some_and(|host| !host.is_empty()), "{url}");
        assert!(
            url.username().is_empty() && url.password().is_none(),
            "{url}"
        );
        assert!(!worker.provider.is_empty());
        let again = url.as_str().parse();
        assert_eq!(
            again.as_ref(),
            Ok(url),
            "what is shown of it leads elsewhere"
        );
    }
    // Every worker may be lost, until nobody is left.
    let all = config.everybody().count();
    let mut left = Some(config);
    for _ in 0..all {
        let config = left.expect("somebody is left");
        let without = config.without(config.workers[0].url.as_str());
        left = without.into_iter().next();
    }
    assert!(left.is_none(), "somebody is left");
});
