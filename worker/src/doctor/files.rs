//! The model, the store, and the worker's identity, where flags name them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lacuna_channel::certificate::Validity;
use lacuna_channel::server::{Files, Server};

use lacuna_model::unet::original;

use super::{Asked, Finding};
use crate::model;
use crate::tokens::Tokens;

pub(super) fn examine(asked: &Asked) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(asked.model.as_deref().map(|model| model_of(model, asked)));
    findings.extend(asked.store.as_deref().map(store));
    let mut tls = asked.tls.clone();
    if let Some(dir) = &asked.identity {
        if !dir.exists() {
            findings.push(made(dir));
        } else {
            tls = Some(["cert.pem", "key.pem"].map(|name| dir.join(name)));
            // An identity is its owner's alone; a Secret of Kubernetes is readable by the pod's group.
            findings.extend(secret("key of --identity", &dir.join("key.pem"), 0o077));
            findings.extend(secret("tokens of --identity", &dir.join("tokens"), 0o077));
            findings.extend(
                dir.join("tokens")
                    .exists()
                    .then(|| tokens(&dir.join("tokens")))
                    .flatten(),
            );
        }
    } else if let Some([_, key]) = &tls {
        findings.extend(secret("--tls-key", key, 0o007));
    }
    if let Some([certificate, key]) = tls
        && (asked.identity.is_none() || (certificate.exists() && key.exists()))
    {
        findings.push(channel(Files {
            certificate: certificate.clone(),
            key,
            client_authorities: asked.client_authorities.clone(),
        }));
        findings.extend(valid(&certificate));
    }
    if let Some(file) = &asked.token_file {
        findings.extend(secret("--token-file", file, 0o007));
        findings.extend(tokens(file));
    }
    findings
}

fn model_of(path: &Path, asked: &Asked) -> Finding {
    let what = "--model";
    if path.is_file() {
        let config = asked.model_config.as_ref();
        let config = config.map(|dir| dir.join("unet/config.json"));
        return match original::open(path, config.as_deref()) {
            Ok(_) => Finding::ok(what, format!("{}, a model in one file", path.display())),
            Err(error) => Finding::broken(what, error.to_string()).stopping(),
        };
    }
    let found = model::folder(path).and_then(|dir| {
        let config = dir.join("config.json");
        let read = File::open(&config).and_then(|_| std::fs::read_dir(&dir));
        let entries = read.map_err(|e| format!("{}: {e}", config.display()))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        match names.filter(|name| name.ends_with(".safetensors")).count() {
            0 => Err(format!("{} has no .safetensors", dir.display())),
            files => Ok(format!("{}, {files} files of weights", dir.display())),
        }
    });
    match found {
        Ok(said) => Finding::ok(what, said),
        Err(reason) => Finding::broken(what, reason).stopping(),
    }
}

/// Whether files can be made in the folder, by making one.
fn try_to_write(dir: &Path) -> Result<(), String> {
    let path = dir.join(format!(".doctor-{}", std::process::id()));
    let made = OpenOptions::new().write(true).create_new(true).open(&path);
    made.and_then(|_| std::fs::remove_file(&path)).map_err(|e| {
        format!(
            "{}: {e}; let this user write there, or name another folder",
            dir.display()
        )
    })
}

/// The nearest folder above that is there.
fn above(dir: &Path) -> &Path {
    let above = dir.ancestors().skip(1).find(|above| above.is_dir());
    above.unwrap_or(Path::new("."))
}

fn made(dir: &Path) -> Finding {
    let what = "--identity";
    match try_to_write(above(dir)) {
        Ok(()) => Finding::missing(
            what,
            format!("{}: the worker makes it at its start", dir.display()),
        ),
        Err(reason) => Finding::broken(what, reason).stopping(),
    }
}

fn store(dir: &Path) -> Finding {
    let what = "--store";
    let folder = if dir.exists() { dir } else { above(dir) };
    if let Err(reason) = try_to_write(folder) {
        return Finding::broken(what, reason).stopping();
    }
    let held = File::open(dir.join("lock")).is_ok_and(|lock| lock.try_lock().is_err());
    match held {
        true => Finding::broken(
            what,
            format!("{}: a worker that runs keeps models there", dir.display()),
        )
        .stopping(),
        false => Finding::ok(what, format!("{} can be written", dir.display())),
    }
}

/// Whether a secret file that is there can be read by those who have any bit of `others`.
fn secret(what: &str, path: &Path, others: u32) -> Option<Finding> {
    // What cannot be looked at is found by whoever reads it.
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    Some(match mode & others {
        0 => Finding::ok(what, format!("{}, mode {mode:03o}", path.display())),
        _ => Finding::broken(
            what,
            format!(
                "{0}, mode {mode:03o}: others read it; chmod 600 {0}",
                path.display()
            ),
        ),
    })
}

fn tokens(path: &Path) -> Option<Finding> {
    let error = Tokens::new(None, Some(path)).err()?;
    let said = format!("{error}; write one token a line into it");
    Some(Finding::broken("tokens", said).stopping())
}

fn channel(files: Files) -> Finding {
    match Server::new(files) {
        Ok(server) => Finding::ok("TLS", format!("pin {}", server.pin())),
        Err(error) => Finding::broken("TLS", error.to_string()).stopping(),
    }
}

fn valid(certificate: &Path) -> Option<Finding> {
    // What cannot be read at all was found before.
    let validity = Validity::of(certificate).ok()?;
    let Validity { from, until, now } = validity;
    let said = format!("{}, from {from} until {until}", certificate.display());
    Some(match now {
        true => Finding::ok("certificate", said),
        false => Finding::broken(
            "certificate",
            format!("{said}, which is not now; renew it, or set this machine's clock"),
        )
        .stopping(),
    })
}
