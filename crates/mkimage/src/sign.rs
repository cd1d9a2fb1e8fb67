//! Signing an image's content beside the image, by a secret key of minisign into a file, or by one on P-256 into an OCI
//! image layout as cosign has it; `daxfs::signature` says what is signed, and checks it.

mod layout;

use crate::output::{Output, Readers};
use crate::{Error, Result};
use ct_codecs::{Base64, Decoder};
use daxfs::ContentHash;
use daxfs::signature::{Scheme, beside, cosign, layout_beside, statement};
use minisign::{PublicKey, SecretKey, SecretKeyBox};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::pkcs8::{DecodePrivateKey, EncodePublicKey, LineEnding};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest file of a secret key or a password: minisign's own have about 300 bytes.
const KEY_MAX: u64 = 4096;

/// A secret key, ready to sign. Its bytes are never shown.
pub struct Signer(Key);

enum Key {
    Minisign { key: SecretKey, public: PublicKey },
    P256(SigningKey),
}

/// A signature in the form in which it is written.
enum Signed {
    Text(String),
    Payload { payload: Vec<u8>, signature: Vec<u8> },
}

impl Signed {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Payload { payload, signature } => cosign::line(payload, signature),
        }
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads a secret key: as `minisign -G` writes it, or one on P-256 in PEM, as `openssl genpkey` (PKCS#8) and
    /// `openssl ecparam -genkey` (SEC1) write it.
    ///
    /// One of minisign that is protected takes `password`, or without it what is typed at the terminal; one that is not
    /// takes none. Deriving the key from a password takes up to 1 GiB of memory and some seconds, as the key file says.
    ///
    /// # Errors
    /// [`Error::Key`] when it is no secret key, or the password is not its own, or it is one in PEM that is protected;
    /// [`Error::Io`].
    pub fn open(path: &Path, password: Option<&Path>) -> Result<Self> {
        let refuse = |why: String| Error::Key { path: path.to_owned(), why };
        let text = read(path)?;
        if text.contains("-----BEGIN ") {
            return match password {
                Some(_) => Err(refuse("is in PEM without a password; leave --password-file out".to_owned())),
                None => pem(&text).map(|key| Self(Key::P256(key))).map_err(refuse),
            };
        }
        let bytes = text.lines().nth(1).and_then(|line| Base64::decode_to_vec(line.trim(), None).ok());
        let none = "is not a secret key: those of minisign are a comment and a line of base64, those on P-256 a PEM block";
        let bytes = bytes.filter(|bytes| bytes.starts_with(b"Ed")).ok_or_else(|| refuse(none.to_owned()))?;
        let key = match bytes.get(2..4) {
            // Not protected. Its checksum is not looked at: minisign writes none there.
            Some([0, 0]) if password.is_some() => {
                return Err(refuse("is not protected by a password; leave --password-file out".to_owned()));
            }
            Some([0, 0]) => SecretKey::from_bytes(&bytes).map_err(|_| refuse(none.to_owned()))?,
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
        Ok(Self(Key::Minisign { key, public }))
    }

    /// What its signatures are.
    pub fn scheme(&self) -> Scheme {
        match self.0 {
            Key::Minisign { .. } => Scheme::Minisign,
            Key::P256(_) => Scheme::Cosign,
        }
    }

    /// The signature of an image's content, as a text; it says when, which image and which content.
    ///
    /// # Errors
    /// [`Error::Sign`].
    pub fn sign(&self, content: &ContentHash, image: &Path) -> Result<String> {
        self.signed(content, image).map(|signed| signed.text())
    }

    fn signed(&self, content: &ContentHash, image: &Path) -> Result<Signed> {
        let failed = |why: String| Error::Sign { path: image.to_owned(), why };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // A line of text: a name that is not is escaped.
        let name = image.file_name().unwrap_or_default().as_encoded_bytes().escape_ascii().to_string();
        let (signed, public) = match &self.0 {
            Key::Minisign { key, public } => {
                let statement = statement(content);
                let what = statement.trim_end();
                let comment = format!("timestamp:{time}\tfile:{name}\t{what}");
                let signature = minisign::sign(
                    Some(public),
                    key,
                    statement.as_bytes(),
                    Some(&comment),
                    Some("signature from daxfs-pack"),
                );
                let text = signature.map_err(|error| failed(error.to_string()))?.into_string();
                (Signed::Text(text), public.to_base64())
            }
            Key::P256(key) => {
                let payload = cosign::payload(content, &name, time);
                let signature: DerSignature =
                    key.try_sign(&payload).map_err(|error| failed(error.to_string()))?;
                let signature = signature.as_bytes().to_vec();
                let public = p256::PublicKey::from(key.verifying_key()).to_public_key_pem(LineEnding::LF);
                let public = public.map_err(|error| failed(error.to_string()))?;
                (Signed::Payload { payload, signature }, public)
            }
        };
        // A key file whose two halves do not belong together signs what nobody can check.
        let checked = daxfs::signature::PublicKeys::parse(&public, "the key")
            .and_then(|keys| keys.verify(content, &signed.text()));
        checked.map_err(|error| failed(format!("the key is damaged: {error}")))?;
        Ok(signed)
    }

    /// Where the signature of an image will lie, if it can: what is there already is a signature, or nothing. To be
    /// asked before an image is written.
    ///
    /// # Errors
    /// [`Error::Output`] when something else lies there.
    pub fn place(&self, image: &Path) -> Result<PathBuf> {
        match self.scheme() {
            Scheme::Cosign => {
                let path = layout_beside(image);
                layout::check(&path)?;
                Ok(path)
            }
            _ => {
                let path = beside(image);
                Output::create(&path, Readers::NOBODY)?;
                Ok(path)
            }
        }
    }

    /// Signs and writes the signature beside the image, in place of one that lies there. Returns its path.
    ///
    /// # Errors
    /// As for [`Signer::sign`] and [`Signer::place`], and [`Error::Io`]: then the image is there without a signature,
    /// or with an old one that is not its own.
    pub fn write(&self, content: &ContentHash, image: &Path, sync: bool) -> Result<PathBuf> {
        let path = self.place(image)?;
        match self.signed(content, image)? {
            Signed::Text(text) => write_file(&path, text.as_bytes(), sync)?,
            Signed::Payload { payload, signature } => {
                layout::write(&path, &cosign::layout(content, &payload, &signature), sync)?;
            }
        }
        Ok(path)
    }
}

/// A file that is there whole or not at all.
fn write_file(path: &Path, bytes: &[u8], sync: bool) -> Result<()> {
    let failed = |error| Error::io("write", path, error);
    let output = Output::create(path, Readers::Of { others: true, group: None })?;
    let fd = output.as_fd().try_clone_to_owned().map_err(failed)?;
    File::from(fd).write_all(bytes).map_err(failed)?;
    output.commit(sync)
}

/// The key in a text with a PEM block, or why there is none.
fn pem(text: &str) -> std::result::Result<SigningKey, String> {
    let blocks = text.match_indices("-----BEGIN ").filter_map(|(start, begin)| {
        let block = text.get(start..)?;
        let label = block.get(begin.len()..)?.split("-----").next()?;
        Some((label, block))
    });
    // openssl writes the name of the curve before the key.
    let mut blocks = blocks.filter(|(label, _)| *label != "EC PARAMETERS");
    let (label, block) = blocks.next().ok_or("has no secret key in it")?;
    let end = format!("-----END {label}-----");
    let end = block.find(&end).map(|at| at + end.len()).ok_or("is cut: its PEM block has no end")?;
    // Other lines may follow.
    let block = block.get(..end).unwrap_or(block);
    let damaged = || {
        "is no key on P-256, or is damaged; `openssl genpkey -algorithm EC -pkeyopt \
                      ec_paramgen_curve:P-256` makes one"
            .to_owned()
    };
    match label {
        "PRIVATE KEY" => SigningKey::from_pkcs8_pem(block).map_err(|_| damaged()),
        "EC PRIVATE KEY" if block.contains("ENCRYPTED") => Err(protected()),
        "EC PRIVATE KEY" => {
            p256::SecretKey::from_sec1_pem(block).map(SigningKey::from).map_err(|_| damaged())
        }
        "ENCRYPTED PRIVATE KEY" => Err(protected()),
        "ENCRYPTED SIGSTORE PRIVATE KEY" | "ENCRYPTED COSIGN PRIVATE KEY" => Err("is a key of cosign, which is \
             protected in cosign's own way: sign with cosign itself (-a daxfs-content=blake3:HASH), or make the key \
             with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`, which signs here, and there after \
             `cosign import-key-pair --key KEY`"
            .to_owned()),
        "PUBLIC KEY" => Err("is a public key; a secret one signs".to_owned()),
        label => Err(format!("begins {:?}, which is not a secret key on P-256", label.escape_debug().to_string())),
    }
}

fn protected() -> String {
    "is protected by a password; `openssl pkey -in KEY -out PLAIN` takes that away".to_owned()
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
mod tests;
