//! Which cluster is asked, and with whose rights: the user's own.

use std::path::PathBuf;

use kube::{
    Api, Client, Config, ResourceExt as _,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::Error;
use crate::api::{IdleConnectionPolicy, StoredPolicy};

/// As kubectl has them.
#[derive(clap::Args, Debug)]
pub struct Cluster {
    /// The namespace; by default the kubeconfig's.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// The kubeconfig; by default KUBECONFIG, then ~/.kube/config.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context.
    #[arg(long)]
    pub context: Option<String>,
}

impl Cluster {
    /// Policies of the namespace, and its name.
    pub async fn policies(&self) -> Result<(Api<StoredPolicy>, String), Error> {
        let (config, namespace) = self.config().await?;
        Ok((Api::namespaced(Client::try_from(config)?, &namespace), namespace))
    }

    /// Policies of all namespaces.
    pub async fn all_policies(&self) -> Result<Api<StoredPolicy>, Error> {
        Ok(Api::all(Client::try_from(self.read().await?)?))
    }

    /// One policy.
    pub async fn policy(&self, name: &str) -> Result<IdleConnectionPolicy, Error> {
        let (api, namespace) = self.policies().await?;
        let stored = api.get_opt(name).await?.ok_or_else(|| Error::NotFound { name: name.to_owned(), namespace })?;
        understood(stored)
    }

    /// The kubeconfig, and the namespace that is meant.
    pub async fn config(&self) -> Result<(Config, String), Error> {
        let config = self.read().await?;
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        Ok((config, namespace))
    }

    async fn read(&self) -> Result<Config, Error> {
        let problem = |error: &dyn std::error::Error| Error::Kubeconfig(error.to_string());
        let wanted = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        match &self.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path).map_err(|error| problem(&error))?;
                Config::from_custom_kubeconfig(kubeconfig, &wanted).await
            }
            None => Config::from_kubeconfig(&wanted).await,
        }
        .map_err(|error| problem(&error))
    }
}

/// A policy, as far as this version understands it; what it does not is said beside it.
pub fn understood(stored: StoredPolicy) -> Result<IdleConnectionPolicy, Error> {
    let name = stored.name_any();
    match stored.read() {
        Ok((policy, foreign)) => {
            if let Some(foreign) = foreign {
                eprintln!("kubectl idleconn: {}", Error::Newer { name, foreign });
            }
            Ok(policy)
        }
        Err(foreign) => Err(Error::Newer { name, foreign }),
    }
}
