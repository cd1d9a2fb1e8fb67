//! Signatures of minisign, and what holds of all.

use super::*;

/// Made by minisign 0.11: `minisign -GW`, and `minisign -S` of the statement of a hash of zeros.
const KEY: &str = include_str!("../../tests/minisign/minisign.pub");
const SIGNATURE: &str = include_str!("../../tests/minisign/statement.minisig");
const OTHER_KEY: &str = "untrusted comment: minisign public key E7620F1842B4E81F\n\
    RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";

#[test]
fn what_the_stock_tool_signs_is_valid_for_its_content_alone() {
    let keys = PublicKeys::parse(KEY, "key").unwrap();
    let comment = keys.verify(&[0; 32].into(), SIGNATURE).unwrap().comment;
    assert!(comment.contains("file:statement"), "{comment}");
    let replayed = keys.verify(&[1; 32].into(), SIGNATURE).unwrap_err();
    assert!(
        matches!(&replayed, SignatureError::Invalid { content, .. } if *content == [1; 32].into()),
        "{replayed}"
    );
    let other = PublicKeys::parse(OTHER_KEY, "key").unwrap().verify(&[0; 32].into(), SIGNATURE).unwrap_err();
    assert!(matches!(other, SignatureError::OtherKey { keys: 1 }), "{other}");
    let both = PublicKeys::parse(&[OTHER_KEY, KEY].concat(), "keys").unwrap();
    assert_eq!(both.count(), 2);
    both.verify(&[0; 32].into(), SIGNATURE).unwrap();
}

#[test]
fn no_other_text_is_a_signature() {
    let keys = PublicKeys::parse(KEY, "key").unwrap();
    let text = SIGNATURE.trim_end();
    for end in 0..text.len() {
        if text.is_char_boundary(end) {
            keys.verify(&[0; 32].into(), &text[..end]).unwrap_err();
        }
    }
    let lines: Vec<&str> = text.lines().collect();
    for at in [1, 2, 3] {
        for letter in 17..lines[at].len() {
            let mut bytes = lines[at].as_bytes().to_vec();
            bytes[letter] = if bytes[letter] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            let mut other = lines.clone();
            other[at] = &changed;
            let outcome = keys.verify(&[0; 32].into(), &other.join("\n"));
            assert!(outcome.is_err(), "line {at}, letter {letter}");
        }
    }
    let long = "x".repeat(SIGNATURE_MAX + 1);
    assert!(matches!(keys.verify(&[0; 32].into(), &long), Err(SignatureError::TooLong { .. })));
    for text in ["", "\n\n\n\n", "a\nb\nc\nd\n", "untrusted comment: \u{1b}\nRUQ=\ntrusted comment: \nRUQ=\n"]
    {
        assert!(
            matches!(keys.verify(&[0; 32].into(), text), Err(SignatureError::NotASignature { .. })),
            "{text:?}"
        );
    }
    let old = "untrusted comment: signature from minisign secret key\n\
        RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=\n\
        trusted comment: timestamp:1555779966\tfile:test\n\
        QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==\n";
    let refused = PublicKeys::parse(OTHER_KEY, "key").unwrap().verify(&[0; 32].into(), old).unwrap_err();
    assert!(refused.to_string().contains("of the old kind"), "{refused}");
}

#[test]
fn keys_are_bounded_and_named_by_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    std::fs::write(&path, format!("# two\n\n{OTHER_KEY}{KEY}")).unwrap();
    assert_eq!(PublicKeys::read(&path).unwrap().count(), 2);
    std::fs::write(&path, format!("{KEY}RWQnonsense\n")).unwrap();
    assert!(matches!(PublicKeys::read(&path), Err(SignatureError::NotAKey { line: 3, .. })));
    std::fs::write(&path, "untrusted comment: none\n").unwrap();
    assert!(matches!(PublicKeys::read(&path), Err(SignatureError::NoKey { .. })));
    std::fs::write(&path, [0xff; 9]).unwrap();
    assert!(matches!(PublicKeys::read(&path), Err(SignatureError::NotAKey { line: 1, .. })));
    std::fs::write(&path, vec![b'#'; KEYS_MAX + 1]).unwrap();
    assert!(matches!(PublicKeys::read(&path), Err(SignatureError::TooLong { .. })));
    // Nothing is waited for that may never come.
    let fifo = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for path in [dir.path(), Path::new("/dev/zero"), &fifo] {
        assert!(matches!(PublicKeys::read(path), Err(SignatureError::NotAFile { .. })));
        assert!(matches!(read(path), Err(SignatureError::NotAFile { .. })));
    }
}

#[test]
fn what_is_passed_on_is_signed_and_what_is_found_is_no_link() {
    let text =
        SIGNATURE.replacen("untrusted comment: ", "untrusted comment: one secret and ", 1) + "another\n";
    let passed = canonical(&text).unwrap();
    assert!(!passed.contains("secret") && !passed.contains("another"), "{passed}");
    PublicKeys::parse(KEY, "key").unwrap().verify(&[0; 32].into(), &passed).unwrap();
    assert_eq!(canonical(&passed).unwrap(), passed);
    assert!(matches!(canonical("a\nsecret\n"), Err(SignatureError::NotASignature { .. })));
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    assert!(read_beside(&image).unwrap().is_none());
    std::fs::write(dir.path().join("elsewhere"), SIGNATURE).unwrap();
    std::os::unix::fs::symlink("elsewhere", beside(&image)).unwrap();
    assert!(matches!(read_beside(&image), Err(SignatureError::Read { .. })));
    assert_eq!(read(&beside(&image)).unwrap(), SIGNATURE);
    std::fs::rename(dir.path().join("elsewhere"), beside(&image)).unwrap();
    let found = || read_beside(&image).unwrap().unwrap();
    let keys = PublicKeys::parse(KEY, "key").unwrap();
    assert!(
        found().verify(&keys, &[0; 32].into()).is_ok() && found().verify(&keys, &[1; 32].into()).is_err()
    );
    let (text, refused) = found().canonical();
    assert!(text == canonical(SIGNATURE).unwrap() && refused.is_empty(), "{text} {refused:?}");
}

#[test]
fn places() {
    for (image, signature) in [("a/m.daxfs", "a/m.daxfs.minisig"), ("weights/", "weights.minisig")] {
        assert_eq!(beside(Path::new(image)), Path::new(signature));
    }
    assert_eq!(statement(&[0x0f; 32].into()), format!("daxfs content blake3:{}\n", "0f".repeat(32)));
}
