//! The pages: every local link leads somewhere, every flag is there, and the README stays short.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use lacuna::cli::Cli;

/// The most words of the README outside tables and code.
const MOST_WORDS: usize = 900;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every tracked page, as a path from the repository's root; without git, every page that is there.
fn pages() -> Vec<PathBuf> {
    let listing = Command::new("git")
        .args(["ls-files", "-z", "*.md"])
        .current_dir(root())
        .output();
    let tracked = match listing {
        Ok(listing) if listing.status.success() => String::from_utf8(listing.stdout).unwrap(),
        _ => String::new(),
    };
    let mut pages: Vec<PathBuf> = tracked
        .split_terminator('\0')
        .map(PathBuf::from)
        .filter(|page| root().join(page).exists())
        .collect();
    if pages.is_empty() {
        for folder in ["", "docs"] {
            for entry in std::fs::read_dir(root().join(folder)).unwrap() {
                let name = entry.unwrap().file_name();
                if Path::new(&name).extension().is_some_and(|end| end == "md") {
                    pages.push(Path::new(folder).join(name));
                }
            }
        }
    }
    pages
}

fn read(page: &Path) -> String {
    std::fs::read_to_string(root().join(page)).unwrap()
}

/// The lines that are neither in a block of code nor its fences.
fn prose(text: &str) -> Vec<&str> {
    let mut code = false;
    let outside = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    });
    outside.collect()
}

/// `line` without what stands between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// What follows `](` up to its closing bracket.
fn links(line: &str) -> Vec<String> {
    let line = without_code(line);
    let parts = line.split("](").skip(1);
    let targets = parts.filter_map(|part| part.split_once(')').map(|(target, _)| target));
    targets.map(str::to_owned).collect()
}

/// The anchors of a page's headings, as GitHub makes them; a second heading of one name gets a number.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let headings = prose(text).into_iter().filter(|line| line.starts_with('#'));
    for heading in headings {
        let title = heading.trim_start_matches('#').trim().to_lowercase();
        let name: String = title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let mut anchor = name.clone();
        let mut number = 0;
        while !anchors.insert(anchor) {
            number += 1;
            anchor = format!("{name}-{number}");
        }
    }
    anchors
}

/// `path` without `.` and `..`; none where it leads out of the repository.
fn tidy(path: &Path) -> Option<PathBuf> {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => tidy.push(name),
            Component::CurDir => {}
            Component::ParentDir if tidy.pop() => {}
            _ => return None,
        }
    }
    Some(tidy)
}

/// Why a link of `page` leads nowhere, if it does; links to other sites are not followed.
fn broken(page: &Path, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => Some(page.to_owned()),
        file => tidy(&page.parent().unwrap_or(Path::new("")).join(file)),
    };
    let Some(target) = target.filter(|target| root().join(target).exists()) else {
        return Some(format!("{}: no file for {link}", page.display()));
    };
    if anchor.is_empty() || anchors(&read(&target)).contains(anchor) {
        return None;
    }
    Some(format!("{}: no heading for {link}", page.display()))
}

#[test]
fn every_local_link_leads_somewhere() {
    let mut followed = 0;
    let mut lost = Vec::new();
    for page in pages() {
        let text = read(&page);
        for link in prose(&text).into_iter().flat_map(links) {
            followed += 1;
            lost.extend(broken(&page, &link));
        }
    }
    assert!(lost.is_empty(), "{}", lost.join("\n"));
    assert!(followed > 20, "only {followed} links were found");
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let page = Path::new("docs/privacy.md");
    for link in ["none.md", "#none", "../README.md#none", "../../elsewhere"] {
        assert!(broken(page, link).is_some(), "{link}");
    }
    for link in ["../README.md", "../README.md#limits", "https://example.org"] {
        assert_eq!(broken(page, link), None);
    }
    assert_eq!(
        links("[a](b.md) and `[c](d.md)`, ![e](f.png)"),
        ["b.md", "f.png"]
    );
    let anchors = anchors("# A `b`, c!\n```\n# no\n```\n## A b c\n");
    assert_eq!(Vec::from_iter(anchors), ["a-b-c", "a-b-c-1"]);
}

#[test]
fn the_readme_is_short() {
    let text = read(Path::new("README.md"));
    let lines = prose(&text);
    let words = lines
        .iter()
        .filter(|line| !line.trim_start().starts_with('|'));
    let words: usize = words.map(|line| line.split_whitespace().count()).sum();
    assert!(
        words <= MOST_WORDS,
        "{words} words, of {MOST_WORDS} at most"
    );
    let tables = lines
        .windows(2)
        .filter(|pair| pair[0].starts_with('|') && pair[1].starts_with("|-"));
    assert_eq!(tables.count(), 1, "tables");
}

/// Commands and flags on a page: lines of blocks (continued ones as one), and what stands between backticks.
fn code(text: &str) -> Vec<String> {
    let text = text.replace("\\\n", " ");
    let mut block = false;
    let mut pieces = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            block = !block;
        } else if block {
            // What follows a hash is a comment.
            pieces.extend(line.split('#').next().map(str::to_owned));
        } else {
            pieces.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    pieces
}

/// The long flags of a command and of those under it, with those that are on their way out.
fn flags_of(command: &clap::Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter(|flag| !flag.is_hide_set());
    let own = own.filter_map(|flag| flag.get_long()).map(str::to_owned);
    let below = command.get_subcommands().flat_map(flags_of);
    let always = ["help", "version"].map(str::to_owned);
    own.chain(below).chain(always).collect()
}

/// The worker's long flags: the fields of its arguments.
fn worker_flags() -> BTreeSet<String> {
    let source = read(Path::new("worker/src/arguments.rs"));
    let structs = ["Arguments", "Doctor", "Place", "Channel"].map(|name| {
        let (_, fields) = source.split_once(&format!("struct {name} {{")).unwrap();
        fields.split_once("\n}").unwrap().0
    });
    let lines = structs.iter().flat_map(|fields| fields.lines());
    let fields = lines.filter_map(|line| line.split_once(": "));
    let names = fields.map(|(name, _)| name.trim());
    let names = names.map(|name| name.trim_start_matches("pub(crate) "));
    let names = names.filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
    names.map(|name| name.replace('_', "-")).collect()
}

#[test]
fn every_flag_is_there() {
    let lacuna = Cli::command();
    let worker = worker_flags();
    let any: BTreeSet<String> = flags_of(&lacuna).union(&worker).cloned().collect();
    let mut named = 0;
    let mut unknown = Vec::new();
    // What is changed names what was before; the demo model's page is of its training.
    let told = |page: &PathBuf| !page.starts_with("assets") && !page.ends_with("CHANGELOG.md");
    for page in pages().into_iter().filter(told) {
        for piece in code(&read(&page)) {
            let words: Vec<&str> = piece.split_whitespace().collect();
            let program = words.first().and_then(|word| word.rsplit('/').next());
            let known = match program {
                Some("lacuna") => {
                    match words.get(1).and_then(|name| lacuna.find_subcommand(name)) {
                        Some(command) => flags_of(command),
                        None => flags_of(&lacuna),
                    }
                }
                Some("lacuna-worker") => worker.clone(),
                Some(word) if word.starts_with("--") => any.clone(),
                _ => continue,
            };
            let flags = words.iter().filter_map(|word| word.strip_prefix("--"));
            for flag in flags.filter_map(|flag| flag.split(['=', ',']).next()) {
                named += 1;
                if !known.contains(flag) {
                    unknown.push(format!("{}: no --{flag} in {piece:?}", page.display()));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
    assert!(named > 50, "only {named} flags were found");
}
