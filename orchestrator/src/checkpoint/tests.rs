use super::*;

fn asked() -> Asked {
    Asked {
        model: "abc".into(),
        adapters: Vec::new(),
        embeddings: Vec::new(),
        prompt: Prompt::new("a red circle"),
        seed: 7,
        count: 2,
        steps: 3,
        guidance: 2.0,
        eta: 0.0,
        scheduler: None,
        latents: [1, 1, 2, 2],
        init_image: None,
        mask: None,
        strength: None,
    }
}

fn run() -> Run {
    Run::new(vec!["--prompt=a red circle".into()], asked())
}

fn noise() -> HostTensor {
    HostTensor::new([1, 1, 2, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap()
}

fn try_keep(checkpoint: &Checkpoint, done: usize, value: f32) -> Result<()> {
    let values = [value; 4];
    let reached = Reached {
        prediction: &values,
        latents: &values,
        clean: &values,
    };
    checkpoint.keep_step(0, done, [1, 1, 2, 2], reached)
}

fn keep(checkpoint: &Checkpoint, done: usize, value: f32) {
    try_keep(checkpoint, done, value).unwrap();
}

fn begun(checkpoint: &Checkpoint) -> Begun {
    match checkpoint.begin(0, &noise()).unwrap() {
        Kept::Begun(begun) => begun,
        Kept::Written => panic!("it is not written"),
    }
}

#[test]
fn what_was_kept_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("new/run");
    let first = Checkpoint::create(&folder, &run()).unwrap();
    assert!(begun(&first).predictions.is_empty());
    keep(&first, 1, 1.0);
    keep(&first, 2, 2.0);
    // What is behind a gap is of no use.
    keep(&first, 4, 4.0);
    let error = Checkpoint::go_on(&folder, &asked()).unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    drop(first);
    // A program that is killed leaves what it was writing.
    for place in ["", "picture-0", "picture-1"] {
        let place = folder.join(place);
        make_folder(&place).unwrap();
        std::fs::write(place.join(format!("{UNFINISHED}a1")), "half").unwrap();
    }
    let error = Checkpoint::create(&folder, &run()).unwrap_err();
    assert!(error.to_string().contains("--resume"), "{error}");
    assert_eq!(Run::read(&folder).unwrap(), run());

    let again = Checkpoint::go_on(&folder, &asked()).unwrap();
    assert_eq!(begun(&again).predictions, [[1.0; 4], [2.0; 4]]);
    keep(&again, 2, 2.0);
    let error = try_keep(&again, 2, 2.1).unwrap_err();
    assert!(error.to_string().contains("another version"), "{error}");
    let other = HostTensor::new([1, 1, 2, 2], vec![0.0; 4]).unwrap();
    let error = again.begin(0, &other).unwrap_err();
    assert!(error.to_string().contains("other noise"), "{error}");

    again.written(0).unwrap();
    assert!(matches!(again.begin(0, &noise()), Ok(Kept::Written)));
    assert!(!folder.join("picture-0").exists());
    again.end(2).unwrap();
    assert!(!folder.exists());
    let error = Run::read(&folder).unwrap_err();
    assert!(error.to_string().contains("no checkpoint"), "{error}");
}

#[test]
fn what_pictures_depend_on_stays() {
    let folder = tempfile::tempdir().unwrap();
    drop(Checkpoint::create(folder.path(), &run()).unwrap());
    let other = Asked {
        steps: 4,
        ..asked()
    };
    let error = Checkpoint::go_on(folder.path(), &other).unwrap_err();
    assert!(
        error.to_string().contains("its steps is 3, not 4"),
        "{error}"
    );
    let other = Asked {
        embeddings: vec!["def".into()],
        ..asked()
    };
    let error = Checkpoint::go_on(folder.path(), &other).unwrap_err();
    assert!(error.to_string().contains("its embeddings is"), "{error}");
    let mut other = asked();
    other.prompt.options.syntax = crate::text::PromptSyntax::Weighted;
    let error = Checkpoint::go_on(folder.path(), &other).unwrap_err();
    assert!(error.to_string().contains("its syntax is"), "{error}");
    std::fs::write(folder.path().join(RUN), r#"{"format": 9}"#).unwrap();
    let error = Checkpoint::go_on(folder.path(), &asked()).unwrap_err();
    assert!(error.to_string().contains("format is 9"), "{error}");
}

#[test]
#[cfg(unix)]
fn files_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("run");
    let checkpoint = Checkpoint::create(&folder, &run()).unwrap();
    begun(&checkpoint);
    keep(&checkpoint, 1, 1.0);
    checkpoint.keep_shown(0, &[]).unwrap();
    let mut files = 0;
    let mut folders = vec![folder];
    while let Some(next) = folders.pop() {
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&next), 0o700, "{}", next.display());
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    files += 1;
                    assert_eq!(mode(&path), 0o600, "{}", path.display());
                }
            }
        }
    }
    assert_eq!(files, 4);
}
