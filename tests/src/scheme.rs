//! Schemes by their names.

use std::sync::Arc;

use lacuna_orchestrator::schemes::Scheme;
use lacuna_orchestrator::schemes::registry::find;

/// The scheme of that name, with those of `options` that it has.
pub fn scheme(name: &str, options: &[(&str, &str)]) -> Arc<dyn Scheme> {
    let entry = find(name).unwrap();
    let known = entry.options();
    let own = options
        .iter()
        .filter(|(name, _)| known.iter().any(|option| option == name))
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    entry.with_options(&own.collect::<Vec<_>>()).unwrap()
}
