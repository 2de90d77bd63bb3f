//! A worker behind TLS, with a certificate of an authority of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use lacuna_model::device::OpenDevice;
use lacuna_worker::{Model, Options, Service};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// An authority's certificate, as PEM, and what a server named `localhost` that it vouches for speaks by.
fn certified() -> (String, ServerConfig) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let server = server.signed_by(&key, &authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![server.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    (authority.pem(), config)
}

/// A worker of this process, without TLS.
async fn worker(model: &Path) -> SocketAddr {
    let device = OpenDevice::cpu();
    let model = Model::load(&model.join("unet"), None, &[], &device.device).unwrap();
    let service = Service::new(Arc::new(model), &device, &Options::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(lacuna_worker::serve(
        listener,
        service,
        std::future::pending(),
        Duration::ZERO,
    ));
    address
}

/// Takes the TLS off what comes, and hands it on to `to`. Gives the port.
async fn behind_tls(config: ServerConfig, to: SocketAddr) -> u16 {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that trusts nobody here hangs up; that is for it to tell.
                let Ok(mut inside) = acceptor.accept(stream).await else {
                    return;
                };
                let mut outside = TcpStream::connect(to).await.unwrap();
                let _ = copy_bidirectional(&mut inside, &mut outside).await;
            });
        }
    });
    port
}

async fn lacuna(arguments: Vec<String>, authority: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(arguments).env_clear();
    if let Some(path) = authority {
        command.env("SSL_CERT_FILE", path);
    }
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    tokio::time::timeout(Duration::from_secs(120), run)
        .await
        .expect("an end")
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_made_behind_tls_by_those_whom_the_system_trusts() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/models/sd2");
    let (pem, config) = certified();
    let authority = folder.path().join("authority.pem");
    std::fs::write(&authority, pem).unwrap();
    let port = behind_tls(config, worker(&model).await).await;
    let fleet = folder.path().join("fleet.toml");
    let url = format!("https://localhost:{port}");
    std::fs::write(
        &fleet,
        format!("[[worker]]\nurl = \"{url}\"\nprovider = \"a\"\n"),
    )
    .unwrap();
    let generate = |name: &str| {
        let out = folder.path().join(name);
        let arguments = ["generate", "a red circle", "--steps", "2", "--seed", "3"];
        let mut arguments: Vec<String> = arguments.map(str::to_owned).to_vec();
        for (flag, value) in [
            ("--model", model.as_path()),
            ("--device", Path::new("cpu")),
            ("--fleet", &fleet),
            ("--out", &out),
        ] {
            arguments.extend([flag.to_owned(), value.display().to_string()]);
        }
        (arguments, out)
    };

    let (arguments, out) = generate("trusted.png");
    let output = lacuna(arguments, Some(&authority)).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(out.exists());

    let (arguments, out) = generate("refused.png");
    // An authority, and not that one.
    let other = folder.path().join("other.pem");
    std::fs::write(&other, certified().0).unwrap();
    let output = lacuna(arguments, Some(&other)).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains(&url), "{said}");
    assert!(!out.exists());
}
