//! Who may log in: the verifiers of the configured users, and one for everybody else that never matches.

use std::collections::HashMap;
use std::sync::Arc;

use pgwire::api::auth::sasl::scram::{ScramSecret, gen_salted_password};
use shard_config::{Config, Secret};

/// Iterations of a verifier, from PostgreSQL's `SCRAM_SHA_256_DEFAULT_ITERATIONS`.
const ITERATIONS: usize = 4096;

#[derive(Debug)]
pub struct Users {
    by_name: HashMap<String, Arc<UserEntry>>,
    /// Makes the salt of an unknown user look as stable as that of a known one.
    mock_key: [u8; 32],
}

#[derive(Debug)]
pub struct UserEntry {
    pub name: String,
    pub password: Secret,
    salt: [u8; 16],
    salted: Vec<u8>,
}

impl Users {
    pub fn new(config: &Config) -> Self {
        let entry = |name: &str, password: &Secret| {
            let salt: [u8; 16] = rand::random();
            let salted = gen_salted_password(password.expose(), &salt, ITERATIONS);
            (
                name.to_owned(),
                Arc::new(UserEntry { name: name.to_owned(), password: password.clone(), salt, salted }),
            )
        };
        let by_name = config.users.iter().map(|user| entry(&user.name, &user.password)).collect();
        Self { by_name, mock_key: rand::random() }
    }

    pub fn get(&self, name: &str) -> Option<&Arc<UserEntry>> {
        self.by_name.get(name)
    }

    /// The verifier for this login. An unknown user gets one whose salt depends only on the name, like a real
    /// one's, and whose keys nobody knows: the two cannot be told apart from outside.
    pub fn verifier(&self, name: &str) -> ScramSecret {
        match self.by_name.get(name) {
            Some(user) => ScramSecret::verifier_from_salted_password(
                user.salt.to_vec(),
                user.salted.clone(),
                ITERATIONS,
            ),
            None => {
                let digest = super::client_side::hmac_sha256(&self.mock_key, &[name.as_bytes()]);
                ScramSecret::Verifier {
                    salt: digest[..16].to_vec(),
                    iterations: ITERATIONS,
                    stored_key: rand::random::<[u8; 32]>().to_vec(),
                    server_key: rand::random::<[u8; 32]>().to_vec(),
                }
            }
        }
    }
}
