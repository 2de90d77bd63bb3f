//! Where files of the system and variables are looked up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Most bytes of a file that is read.
const MOST: u64 = 4 << 20;

/// Folders of libraries beside those that the loader's cache names.
const LIBRARIES: [&str; 8] = [
    "lib",
    "lib64",
    "usr/lib",
    "usr/lib64",
    "usr/local/lib",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/local/nvidia/lib64",
];

/// A system: its files below a folder, and the variables of its processes.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
    variables: BTreeMap<String, String>,
}

impl Machine {
    /// The files below `root`, and these `variables`.
    pub fn new(root: impl Into<PathBuf>, variables: BTreeMap<String, String>) -> Self {
        Self {
            root: root.into(),
            variables,
        }
    }

    /// The one that this process runs on.
    pub fn this() -> Self {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::new("/", variables.collect())
    }

    /// A variable that is set, and not to nothing.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(name).map(|value| value.trim());
        value.filter(|value| !value.is_empty())
    }

    fn below(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Whether there is such a file or folder.
    pub(super) fn has(&self, path: impl AsRef<Path>) -> bool {
        self.below(path).exists()
    }

    /// The names in a folder, sorted; none where there is no such folder.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.below(folder)).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// The bytes of a file.
    pub(super) fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, String> {
        let path = self.below(path);
        let len = std::fs::metadata(&path).map_err(|e| e.to_string())?.len();
        if len > MOST {
            return Err(format!("{len} bytes; at most {MOST}"));
        }
        std::fs::read(&path).map_err(|e| e.to_string())
    }

    /// Where a library of this name lies, such as `libvulkan.so.1`, if the loader of programs would find it.
    pub(super) fn library(&self, name: &str) -> Option<String> {
        let there = |path: &String| self.has(path);
        let named = self.variable("LD_LIBRARY_PATH").unwrap_or_default();
        let folders = named.split(':').filter(|folder| !folder.is_empty());
        let mut paths = folders.chain(LIBRARIES).map(|folder| {
            let folder = folder.trim_matches('/');
            format!("/{folder}/{name}")
        });
        paths.find(there).or_else(|| {
            // The cache of ldconfig(8) is a table of strings that end with a zero, among other bytes.
            let cache = self.read("etc/ld.so.cache").ok()?;
            let strings = cache.split(|&byte| byte == 0);
            let mut paths = strings.filter_map(|text| std::str::from_utf8(text).ok());
            let end = format!("/{name}");
            let path = paths.find(|path| path.starts_with('/') && path.ends_with(&end))?;
            Some(path.to_owned()).filter(there)
        })
    }

    /// Whether this looks like the inside of a container.
    pub(super) fn is_container(&self) -> bool {
        let variables = [
            "container",
            "KUBERNETES_SERVICE_HOST",
            "NVIDIA_VISIBLE_DEVICES",
        ];
        let files = [".dockerenv", "run/.containerenv"];
        variables.iter().any(|name| self.variable(name).is_some())
            || files.iter().any(|f| self.has(f))
    }
}
