//! Handshakes of both sides over loopback: who gets in, and who is kept out.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use lacuna_channel::Pin;
use lacuna_channel::client::Trust;
use lacuna_channel::identity::Identity;
use lacuna_channel::server::{Files, Server};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::{ClientConfig, ClientConnection, ServerConnection, Stream};

/// Answers the first connection with a word.
fn answer(server: &Server) -> (u16, JoinHandle<std::io::Result<()>>) {
    let config = server.config();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answered = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept()?;
        let mut connection = ServerConnection::new(config).unwrap();
        let mut stream = Stream::new(&mut connection, &mut socket);
        let mut word = [0; 5];
        stream.read_exact(&mut word)?;
        stream.write_all(b"world")
    });
    (port, answered)
}

fn ask_by(config: ClientConfig, server: &Server) -> Result<(), String> {
    let (port, answered) = answer(server);
    let name = "localhost".try_into().unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let asked = || {
        let mut stream = Stream::new(&mut connection, &mut socket);
        stream.write_all(b"hello")?;
        let mut word = [0; 5];
        stream.read_exact(&mut word)?;
        assert_eq!(&word, b"world");
        Ok::<_, std::io::Error>(())
    };
    let said = { asked }().map_err(|e| e.to_string());
    drop(socket);
    let there = answered.join().unwrap();
    assert!(said.is_err() || there.is_ok());
    said
}

fn ask(trust: &Trust, server: &Server) -> Result<(), String> {
    ask_by(trust.config().unwrap(), server)
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// An authority, whose certificate lies in a file.
fn authority(dir: &Path, name: &str) -> (CertifiedIssuer<'static, KeyPair>, PathBuf) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let path = write(dir, name, &issuer.pem());
    (issuer, path)
}

/// A certificate of `by` for `localhost`, valid until `year`, and its key.
fn certified(
    dir: &Path,
    name: &str,
    by: &CertifiedIssuer<'static, KeyPair>,
    year: i32,
) -> [PathBuf; 2] {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(year, 1, 1);
    let certificate = params.signed_by(&key, by).unwrap();
    [
        write(dir, &format!("{name}.pem"), &certificate.pem()),
        write(dir, &format!("{name}.key"), &key.serialize_pem()),
    ]
}

fn server([certificate, key]: [PathBuf; 2], clients: Option<PathBuf>) -> Server {
    Server::new(Files {
        certificate,
        key,
        client_authorities: clients,
    })
    .unwrap()
}

#[test]
fn who_is_pinned_is_trusted_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| {
        let identity = Identity::at(&folder.path().join(name), &[]).unwrap();
        Server::new(identity.files).unwrap()
    });
    let pinned = |pin| Trust {
        pin: Some(pin),
        ..Trust::default()
    };
    ask(&pinned(one.pin()), &one).unwrap();
    ask(&pinned(other.pin()), &other).unwrap();
    let error = ask(&pinned(one.pin()), &other).unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    let error = ask(&pinned(Pin::of_key(b"")), &one).unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    // The system trusts none of them.
    ask(&Trust::default(), &one).unwrap_err();
}

#[test]
fn a_certificate_is_no_longer_good_when_it_has_expired() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (issuer, ca) = authority(dir, "ca.pem");
    for (year, good) in [(2100, true), (2021, false)] {
        let server = server(certified(dir, &year.to_string(), &issuer, year), None);
        let by_name = Trust {
            authorities: Some(ca.clone()),
            ..Trust::default()
        };
        let by_both = Trust {
            pin: Some(server.pin()),
            ..by_name.clone()
        };
        let by_pin = Trust {
            authorities: None,
            ..by_both.clone()
        };
        for trust in [by_name, by_both, by_pin] {
            let asked = ask(&trust, &server);
            assert_eq!(asked.is_ok(), good, "{asked:?}");
            let said = asked.err().unwrap_or_default().to_lowercase();
            assert!(good || said.contains("expired"), "{said}");
        }
    }
}

#[test]
fn both_the_authority_and_the_pin_must_be_right() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (issuer, ca) = authority(dir, "ca.pem");
    let (other, other_ca) = authority(dir, "other.pem");
    let ours = server(certified(dir, "ours", &issuer, 2100), None);
    let theirs = server(certified(dir, "theirs", &other, 2100), None);
    let trust = |pin: &Server, authority: &PathBuf| Trust {
        pin: Some(pin.pin()),
        authorities: Some(authority.clone()),
        own: None,
    };
    ask(&trust(&ours, &ca), &ours).unwrap();
    ask(&trust(&ours, &other_ca), &ours).unwrap_err();
    ask(&trust(&theirs, &ca), &ours).unwrap_err();
}

#[test]
fn who_must_show_a_certificate_shows_one_of_that_authority() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (issuer, ca) = authority(dir, "ca.pem");
    let (other, _) = authority(dir, "other.pem");
    let server = server(certified(dir, "server", &issuer, 2100), Some(ca));
    let pinned = |own| Trust {
        pin: Some(server.pin()),
        own,
        ..Trust::default()
    };
    ask(&pinned(Some(certified(dir, "me", &issuer, 2100))), &server).unwrap();
    ask(&pinned(None), &server).unwrap_err();
    ask(
        &pinned(Some(certified(dir, "late", &issuer, 2021))),
        &server,
    )
    .unwrap_err();
    ask(&pinned(Some(certified(dir, "he", &other, 2100))), &server).unwrap_err();
}

#[test]
fn older_versions_are_not_spoken() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(Identity::at(folder.path(), &[]).unwrap().files).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap();
    let roots = Arc::new(rustls::RootCertStore::empty());
    let older = builder.with_root_certificates(roots).with_no_client_auth();
    let error = ask_by(older, &server).unwrap_err();
    assert!(error.contains("ProtocolVersion"), "{error}");
}

#[test]
fn a_certificate_that_changed_is_shown_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (issuer, ca) = authority(dir, "ca.pem");
    let [certificate, key] = certified(dir, "now", &issuer, 2100);
    let server = server([certificate.clone(), key.clone()], None);
    let trust = Trust {
        authorities: Some(ca),
        ..Trust::default()
    };
    let before = server.pin();
    assert!(!server.refresh().unwrap());
    // A new certificate and not yet its key.
    let [new_certificate, new_key] = certified(dir, "new", &issuer, 2100);
    std::fs::copy(new_certificate, &certificate).unwrap();
    let error = server.refresh().unwrap_err().to_string();
    assert!(error.contains("not the key of the certificate"), "{error}");
    assert_eq!(server.pin(), before);
    ask(&trust, &server).unwrap();
    std::fs::copy(new_key, &key).unwrap();
    assert!(server.refresh().unwrap());
    assert_ne!(server.pin(), before);
    ask(&trust, &server).unwrap();
    for (path, text) in [(&certificate, "no certificate"), (&key, "")] {
        let whole = std::fs::read(path).unwrap();
        std::fs::write(path, text).unwrap();
        let error = server.refresh().unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        std::fs::write(path, whole).unwrap();
    }
    std::fs::remove_file(&certificate).unwrap();
    assert!(server.refresh().is_err());
    ask(&trust, &server).unwrap();
}
