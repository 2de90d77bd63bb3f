//! The structure of the crates: among the modules of each arrows point down, and never come back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tests::golden::repository;

/// The modules of a crate, each with those that it uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

fn sources(path: &Path, all: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            sources(&entry.unwrap().path(), all);
        }
    } else if path.extension().is_some_and(|ending| ending == "rs") {
        all.push(path.to_owned());
    }
}

/// The modules that code names by `crate::`; comments and unit tests may name any.
fn named_in(file: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = code.lines().filter(|l| !l.trim_start().starts_with("//"));
    let names = lines.flat_map(|line| line.split("crate::").skip(1));
    let names = names.map(|rest| {
        let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '_'));
        rest[..end.unwrap_or(rest.len())].to_owned()
    });
    names.collect()
}

fn uses_of(source: &Path) -> Uses {
    let mut uses = Uses::new();
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !["lib", "main"].contains(&name.as_str()) {
            let mut files = Vec::new();
            sources(&path, &mut files);
            let named = files.iter().flat_map(|file| named_in(file)).collect();
            uses.insert(name, named);
        }
    }
    let modules: BTreeSet<String> = uses.keys().cloned().collect();
    for (name, named) in &mut uses {
        named.retain(|other| other != name && modules.contains(other));
    }
    uses
}

/// A way from `at` back to the first of `way`, if there is one.
fn circle(uses: &Uses, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> Option<Vec<String>> {
    let at = way.last().unwrap().clone();
    for next in &uses[&at] {
        if let Some(from) = way.iter().position(|name| name == next) {
            return Some(way[from..].to_vec());
        }
        if !done.contains(next) {
            way.push(next.clone());
            if let Some(found) = circle(uses, way, done) {
                return Some(found);
            }
            way.pop();
        }
    }
    done.insert(at);
    None
}

fn find_circle(uses: &Uses) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    let mut starts = uses.keys();
    starts.find_map(|start| circle(uses, &mut vec![start.clone()], &mut done))
}

#[test]
fn arrows_among_modules_never_come_back() {
    let mut crates = Vec::new();
    for folder in ["orchestrator", "worker", "shared"] {
        let folder = repository().join(folder);
        let below = std::fs::read_dir(&folder).unwrap();
        let below = below.map(|entry| entry.unwrap().path());
        crates.extend([folder].into_iter().chain(below));
    }
    let mut seen = 0;
    for source in crates.into_iter().map(|path| path.join("src")) {
        if source.is_dir() && source.join("..").join("Cargo.toml").is_file() {
            let uses = uses_of(&source);
            let found = find_circle(&uses);
            assert!(found.is_none(), "{}: {found:?}", source.display());
            seen += uses.len();
        }
    }
    assert!(seen > 50, "{seen} modules");
}

#[test]
fn a_circle_is_found() {
    let uses = |pairs: &[(&str, &[&str])]| -> Uses {
        let each = pairs.iter();
        each.map(|(name, named)| {
            let named = named.iter().map(|name| (*name).to_owned());
            ((*name).to_owned(), named.collect())
        })
        .collect()
    };
    assert_eq!(
        find_circle(&uses(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])),
        None
    );
    let found = find_circle(&uses(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]));
    assert_eq!(found.unwrap(), ["b", "c"]);
}
