//! A tiny model that may be spoilt, and what `lacuna generate` makes of it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::lacuna;

/// A copy of a tiny model, and a place for the picture beside it.
pub(crate) struct Workplace {
    pub(crate) folder: tempfile::TempDir,
}

impl Workplace {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/models/sd2");
        copy_folder(&tiny, &folder.path().join("model"));
        std::fs::create_dir(folder.path().join("out")).unwrap();
        Self { folder }
    }

    pub(crate) fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// Runs `lacuna generate` on the model, with more arguments.
    pub(crate) fn generate<A: AsRef<OsStr>>(&self, more: &[A]) -> Output {
        self.command(more).output().unwrap()
    }

    /// `lacuna generate` on the model, with more arguments.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, more: &[A]) -> Command {
        let mut arguments = vec![OsStr::new("generate").to_owned()];
        if !more.iter().any(|a| a.as_ref() == "--prompt") {
            arguments.push("a red circle".into());
        }
        for (flag, value) in [
            ("--model", self.model()),
            ("--out", self.out().join("pic.png")),
            ("--device", "cpu".into()),
            ("--steps", "2".into()),
            ("--workers", "2".into()),
        ] {
            // What is given replaces it: clap takes no flag twice, nor two kinds of workers.
            let given = |flag: &str| more.iter().any(|a| a.as_ref() == flag);
            let replaced = flag == "--workers" && given("--fleet");
            if !replaced && !given(flag) {
                arguments.extend([flag.into(), value.into_os_string()]);
            }
        }
        arguments.extend(more.iter().map(|a| a.as_ref().to_owned()));
        let mut command = lacuna();
        command.args(arguments);
        command
    }

    /// Runs it, and sees to it that it fails as it should: a status, one line that names `parts`,
    /// and nothing written.
    #[track_caller]
    pub(crate) fn fails<A: AsRef<OsStr>>(&self, more: &[A], parts: &[&str]) {
        self.fails_with(1, more, parts);
    }

    /// The same with an exit code: 2 is that of a command line that makes no sense.
    #[track_caller]
    pub(crate) fn fails_with<A: AsRef<OsStr>>(&self, code: i32, more: &[A], parts: &[&str]) {
        let output = self.generate(more);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        // A TOML error draws where it is.
        let drawn = stderr.contains("TOML parse error") && stderr.contains("\n  |\n");
        assert!(drawn || stderr.lines().count() == 1, "{stderr}");
        assert!(stderr.starts_with("error: "), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        let clauses: Vec<&str> = stderr.trim().split(": ").collect();
        let distinct: HashSet<&&str> = clauses.iter().collect();
        assert_eq!(distinct.len(), clauses.len(), "said twice: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
        }
        assert_eq!(
            std::fs::read_dir(self.out()).unwrap().count(),
            0,
            "{stderr}"
        );
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
