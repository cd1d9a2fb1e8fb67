//! Signing an image's content by a secret key of minisign, into a file beside the image; `daxfs::signature` says what is
//! signed, and checks it.

use crate::output::{Output, Readers};
use crate::{Error, Result};
use ct_codecs::{Base64, Decoder};
use daxfs::signature::{beside, statement};
use minisign::{PublicKey, SecretKey, SecretKeyBox};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest file of a secret key or a password: minisign's own have about 300 bytes.
const KEY_MAX: u64 = 4096;

/// A secret key, ready to sign. Its bytes are never shown.
pub struct Signer {
    key: SecretKey,
    public: PublicKey,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads a secret key as `minisign -G` writes it. One that is protected takes `password`, or without it what is
    /// typed at the terminal; one that is not takes none. Deriving the key from a password takes up to 1 GiB of memory
    /// and some seconds, as the key file says.
    ///
    /// # Errors
    /// [`Error::Key`] when it is no secret key, or the password is not its own; [`Error::Io`].
    pub fn open(path: &Path, password: Option<&Path>) -> Result<Self> {
        let refuse = |why: String| Error::Key { path: path.to_owned(), why };
        let text = read(path)?;
        let bytes = text.lines().nth(1).and_then(|line| Base64::decode_to_vec(line.trim(), None).ok());
        let none = "is no secret key of minisign: a comment, and a line of base64".to_owned();
        let bytes = bytes.filter(|bytes| bytes.starts_with(b"Ed")).ok_or_else(|| refuse(none.clone()))?;
        let key = match bytes.get(2..4) {
            // Not protected. Its checksum is not looked at: minisign writes none there.
            Some([0, 0]) if password.is_some() => {
                return Err(refuse("is not protected by a password; leave --password-file out".to_owned()));
            }
            Some([0, 0]) => SecretKey::from_bytes(&bytes).map_err(|_| refuse(none))?,
            Some(b"Sc") => {
                let password = match password {
                    Some(path) => read(path)?.lines().next().unwrap_or_default().to_owned(),
                    None => rpassword::prompt_password(format!("Password for {}: ", path.display())).map_err(
                        |error| {
                            refuse(format!(
                                "is protected by a password, and no terminal can be asked ({error}); give it with \
                                 --password-file"
                            ))
                        },
                    )?,
                };
                let boxed = SecretKeyBox::from_string(&text).map_err(|error| refuse(error.to_string()))?;
                boxed.into_secret_key(Some(password)).map_err(|error| refuse(error.to_string()))?
            }
            _ => return Err(refuse("is protected in a way that is not known here".to_owned())),
        };
        let public = PublicKey::from_secret_key(&key).map_err(|error| refuse(error.to_string()))?;
        Ok(Self { key, public })
    }

    /// The signature of an image's content; its trusted comment says when, which image and which content.
    ///
    /// # Errors
    /// [`Error::Sign`].
    pub fn sign(&self, content: &[u8; 32], image: &Path) -> Result<String> {
        let failed = |why: String| Error::Sign { path: image.to_owned(), why };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // The comment is a line of text: a name that is not is escaped.
        let name = image.file_name().unwrap_or_default().as_encoded_bytes().escape_ascii();
        let statement = statement(content);
        let what = statement.trim_end();
        let comment = format!("timestamp:{time}\tfile:{name}\t{what}");
        let signature = minisign::sign(
            Some(&self.public),
            &self.key,
            statement.as_bytes(),
            Some(&comment),
            Some("signature from daxfs-pack"),
        );
        let text = signature.map_err(|error| failed(error.to_string()))?.into_string();
        // A key file whose two halves do not belong together signs what nobody can check.
        let public = self.public.to_base64();
        let checked = daxfs::signature::PublicKeys::parse(&public, "the key")
            .and_then(|keys| keys.verify(content, &text));
        checked.map_err(|error| failed(format!("the key is damaged: {error}")))?;
        Ok(text)
    }

    /// Signs and writes the signature beside the image, in place of one that lies there. Returns its path.
    ///
    /// # Errors
    /// As for [`Signer::sign`], and [`Error::Io`]: then the image is there without a signature, or with an old one that
    /// is not its own.
    pub fn write(&self, content: &[u8; 32], image: &Path, sync: bool) -> Result<PathBuf> {
        let path = beside(image);
        let text = self.sign(content, image)?;
        let output = Output::create(&path, Readers::Of { others: true, group: None })?;
        let fd = output.as_fd().try_clone_to_owned().map_err(|error| Error::io("write", &path, error))?;
        File::from(fd).write_all(text.as_bytes()).map_err(|error| Error::io("write", &path, error))?;
        output.commit(sync)?;
        Ok(path)
    }
}

/// A short text file.
fn read(path: &Path) -> Result<String> {
    let failed = |error| Error::io("read", path, error);
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(KEY_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > KEY_MAX {
        return Err(Error::Key { path: path.to_owned(), why: format!("has more than {KEY_MAX} bytes") });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use daxfs::signature::PublicKeys;

    /// Of minisign 0.11, without a password.
    fn stock() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../daxfs/tests/minisign/minisign.key")
    }

    #[test]
    fn keys_of_the_stock_tool_sign() {
        let signer = Signer::open(&stock(), None).unwrap();
        let text = signer.sign(&[7; 32], Path::new("a/model\n.daxfs")).unwrap();
        let keys = PublicKeys::read(&stock().with_extension("pub")).unwrap();
        let comment = keys.verify(&[7; 32], &text).unwrap();
        assert!(comment.contains("\tfile:model\\n.daxfs\tdaxfs content blake3:0707"), "{comment}");
        assert_eq!(format!("{signer:?}"), "Signer { .. }");
        let dir = tempfile::tempdir().unwrap();
        let path = signer.write(&[7; 32], &dir.path().join("m.daxfs"), false).unwrap();
        assert!(path.ends_with("m.daxfs.minisig"));
        keys.verify(&[7; 32], &std::fs::read_to_string(path).unwrap()).unwrap();
    }

    #[test]
    fn passwords() {
        let dir = tempfile::tempdir().unwrap();
        let (key, password) = (dir.path().join("key"), dir.path().join("password"));
        let pair = minisign::KeyPair::generate_encrypted_keypair(Some("right".to_owned())).unwrap();
        std::fs::write(&key, pair.sk.to_box(None).unwrap().into_string()).unwrap();
        std::fs::write(&password, "right\n").unwrap();
        let signer = Signer::open(&key, Some(&password)).unwrap();
        let keys = PublicKeys::parse(&pair.pk.to_base64(), "key").unwrap();
        keys.verify(&[1; 32], &signer.sign(&[1; 32], Path::new("m")).unwrap()).unwrap();
        std::fs::write(&password, "wrong\n").unwrap();
        let error = Signer::open(&key, Some(&password)).unwrap_err();
        assert!(matches!(error, Error::Key { .. }) && error.to_string().contains("password"), "{error}");
        let error = Signer::open(&stock(), Some(&password)).unwrap_err();
        assert!(error.to_string().contains("is not protected"), "{error}");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let right = std::fs::read_to_string(stock()).unwrap();
        for end in (0..right.trim_end().len()).step_by(7) {
            std::fs::write(&path, &right[..end]).unwrap();
            let error = Signer::open(&path, None).unwrap_err();
            assert!(matches!(error, Error::Key { .. }), "{end}: {error}");
        }
        std::fs::write(&path, "x".repeat(5000)).unwrap();
        assert!(Signer::open(&path, None).unwrap_err().to_string().contains("more than 4096"));
        assert!(matches!(
            Signer::open(Path::new("/dev/zero"), None),
            Err(Error::Key { .. } | Error::Io { .. })
        ));
        assert!(matches!(Signer::open(&dir.path().join("none"), None), Err(Error::Io { .. })));
        // The public half is another key's.
        let mut bytes = Base64::decode_to_vec(right.lines().nth(1).unwrap(), None).unwrap();
        bytes[100] ^= 1;
        use ct_codecs::Encoder;
        let text = format!("comment\n{}\n", Base64::encode_to_string(&bytes).unwrap());
        std::fs::write(&path, text).unwrap();
        let error = Signer::open(&path, None).unwrap().sign(&[0; 32], Path::new("m")).unwrap_err();
        assert!(matches!(error, Error::Sign { .. }), "{error}");
    }
}
