//! Where it happens: two shards between which zones of buckets go to and fro, wires to their servers, and what is done
//! to them.

use super::cell::{Blow, Cell, Component};
use super::shardctl::{Driver, Shardctl};
use super::wire::Wire;
use crate::load::Seed;
use crate::stack::{Stack, connect};
use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::rngs::StdRng;
use std::time::Duration;
use tokio::time::sleep;
use tokio_postgres::Client;

/// Neither of them holds the catalog.
pub const SIDES: [u16; 2] = [2, 3];
pub const CATALOG: u16 = 1;
/// Buckets that move together, around a tenant who pays.
const ZONE: i32 = 64;
const BUCKET: &str = "(uuid_hash_extended($1::text::uuid, 8816678312871386365) & 4095)::int";
/// A few seconds, after which what was killed is started again.
const AWAY: Duration = Duration::from_secs(3);
/// Longer than a proxy's lease of 5 s.
const SILENT: Duration = Duration::from_secs(8);

pub type Range = (i32, i32);

pub struct Field {
    pub tool: Shardctl,
    /// By shard, from 1 on: shardctl's and replication's, and the first proxy's.
    operator: Vec<Wire>,
    proxy: Vec<Wire>,
    proxy_config: String,
    pub zones: Vec<Range>,
}

/// The map in use: (first bucket, last bucket, shard).
pub async fn map(catalog: &Client) -> Result<Vec<(i32, i32, u16)>> {
    let sql = "SELECT (r ->> 0)::int, (r ->> 1)::int, (r ->> 2)::int, overrides = '[]' \
               FROM (SELECT * FROM shard_catalog.map ORDER BY epoch DESC LIMIT 1) m, jsonb_array_elements(ranges) r ORDER BY 1";
    let mut ranges = Vec::new();
    for row in catalog.query(sql, &[]).await.context("the map")? {
        if !row.try_get::<_, bool>(3)? {
            bail!("single tenants live elsewhere than their buckets: start with a fresh stack");
        }
        ranges.push((row.try_get(0)?, row.try_get(1)?, u16::try_from(row.try_get::<_, i32>(2)?)?));
    }
    Ok(ranges)
}

/// Of a tenant.
pub async fn bucket(shard: &Client, tenant: &str) -> Result<i32> {
    let sql = format!("SELECT {BUCKET}");
    Ok(shard.query_one(&sql, &[&tenant]).await.context("a tenant's bucket")?.try_get(0)?)
}

impl Field {
    pub async fn open(stack: &Stack, seed: &Seed) -> Result<Field> {
        if stack.proxies()?.len() < 2 || stack.shards() < 3 {
            bail!("two proxies and three shards are needed: `cargo stack up --detach --proxies 2 --cores 2`");
        }
        let (mut operator, mut proxy) = (Vec::new(), Vec::new());
        let text = std::fs::read_to_string(stack.dir()?.join("proxy1/proxy.toml"))
            .context("proxy1's configuration")?;
        let (mut for_operator, mut for_proxy) = (text.clone(), text);
        for shard in 1..=stack.shards() {
            let port = primary_port(stack, shard)?;
            for (wires, config) in [(&mut operator, &mut for_operator), (&mut proxy, &mut for_proxy)] {
                let wire = Wire::to(port).await?;
                let (from, to) = (
                    format!("primary = \"127.0.0.1:{port}\""),
                    format!("primary = \"127.0.0.1:{}\"", wire.port),
                );
                if !config.contains(&from) {
                    bail!("proxy1's configuration has no line {from}");
                }
                *config = config.replace(&from, &to);
                wires.push(wire);
            }
        }
        let directory = stack.dir()?.join("chaos");
        std::fs::create_dir_all(&directory)?;
        let (config, proxy_config) = (directory.join("shardctl.toml"), directory.join("proxy1.toml"));
        std::fs::write(&config, for_operator)?;
        std::fs::write(&proxy_config, for_proxy)?;
        let catalog = stack.shard(CATALOG).await?;
        let mut zones: Vec<Range> = Vec::new();
        for shard in SIDES {
            for tenant in &seed.tenants[usize::from(shard) - 1] {
                let bucket = bucket(&catalog, &tenant.id).await?;
                let owned = map(&catalog)
                    .await?
                    .into_iter()
                    .find(|(from, last, _)| (*from..=*last).contains(&bucket));
                let (from, last, _) = owned.context("a bucket without an owner")?;
                let base = bucket / ZONE * ZONE;
                let zone = (base.max(from), (base + ZONE - 1).min(last));
                if !zones.iter().any(|other| zone.0 <= other.1 && other.0 <= zone.1) {
                    zones.push(zone);
                }
            }
        }
        let tool = Shardctl::new(stack, config)?;
        let field = Field { tool, operator, proxy, proxy_config: proxy_config.display().to_string(), zones };
        field.kill_proxy(stack).await?;
        field.start_proxy(stack).await?;
        Ok(field)
    }

    /// The first proxy reaches the shards as before; the wires end with this process.
    pub async fn close(&self, stack: &Stack) -> Result<()> {
        self.kill_proxy(stack).await?;
        stack.command(&["start", "proxy1"]).await.map(drop)
    }

    async fn kill_proxy(&self, stack: &Stack) -> Result<()> {
        stack.command(&["kill", "proxy1", "-9"]).await.map(drop)
    }

    async fn start_proxy(&self, stack: &Stack) -> Result<()> {
        stack
            .command_with(&["start", "proxy1"], &[("STACK_PROXY_CONFIG", &self.proxy_config)])
            .await
            .map(drop)
    }

    /// Strikes while the mover stands at the cell's place, lets it go on, and heals.
    pub async fn strike(
        &self,
        stack: &Stack,
        cell: &Cell,
        source: u16,
        target: u16,
        driver: &mut Driver,
        random: &mut StdRng,
    ) -> Result<()> {
        let server = match cell.component {
            Component::Shardctl => return self.strike_shardctl(cell, driver).await,
            Component::Proxy => "proxy1".to_owned(),
            Component::Source => stack.primary_name(source).await?,
            Component::Target => stack.primary_name(target).await?,
            Component::Replica => format!("shard{source}-replica"),
            Component::Catalog => stack.primary_name(CATALOG).await?,
        };
        match cell.blow {
            Blow::Kill => {
                stack.command(&["kill", &server, "-9"]).await?;
                self.tool.release(cell.place)?;
                sleep(AWAY).await;
                match cell.component {
                    Component::Proxy => self.start_proxy(stack).await,
                    _ => stack.command(&["start", &server]).await.map(drop),
                }
            }
            Blow::Stop => {
                stack.command(&["pause", &server]).await?;
                let released = self.tool.release(cell.place);
                sleep(SILENT).await;
                stack.command(&["cont", &server]).await?;
                released
            }
            Blow::Cut if cell.component == Component::Replica => self.cut_replica(stack, cell, source).await,
            Blow::Cut => {
                let one = |wires: &'_ [Wire], shard: u16| wires[usize::from(shard) - 1].cut(true);
                match cell.component {
                    Component::Source => one(&self.operator, source),
                    Component::Target => one(&self.operator, target),
                    Component::Catalog => one(&self.operator, CATALOG),
                    // It knows no more what holds, and can still write; or it can do nothing.
                    _ if random.random() => one(&self.proxy, CATALOG),
                    _ => self.proxy.iter().for_each(|wire| wire.cut(true)),
                }
                self.wait_cut(cell).await
            }
        }
    }

    async fn wait_cut(&self, cell: &Cell) -> Result<()> {
        let released = self.tool.release(cell.place);
        sleep(SILENT).await;
        self.operator.iter().chain(&self.proxy).for_each(|wire| wire.cut(false));
        released
    }

    async fn strike_shardctl(&self, cell: &Cell, driver: &mut Driver) -> Result<()> {
        match cell.blow {
            Blow::Kill => {
                driver.kill().await?;
                self.tool.release(cell.place)?;
                sleep(AWAY).await;
                Ok(())
            }
            Blow::Stop => {
                driver.signal("STOP").await?;
                self.tool.release(cell.place)?;
                sleep(SILENT).await;
                driver.signal("CONT").await
            }
            Blow::Cut => {
                self.operator.iter().for_each(|wire| wire.cut(true));
                self.wait_cut(cell).await
            }
        }
    }

    /// The standby reaches its primary over a wire for as long as this takes.
    async fn cut_replica(&self, stack: &Stack, cell: &Cell, source: u16) -> Result<()> {
        let wire = Wire::to(primary_port(stack, source)?).await?;
        let standby = connect(stack.var(&format!("SHARD{source}_REPLICA_URL"))?).await?;
        let before: String = standby.query_one("SHOW primary_conninfo", &[]).await?.try_get(0)?;
        let port = |word: &str| word.starts_with("port=").then(|| format!("port={}", wire.port));
        let wired: Vec<String> =
            before.split(' ').map(|word| port(word).unwrap_or_else(|| word.to_owned())).collect();
        let set = format!("ALTER SYSTEM SET primary_conninfo = '{}'", wired.join(" ").replace('\'', "''"));
        let done = async {
            standby.batch_execute(&set).await?;
            standby.batch_execute("SELECT pg_reload_conf()").await?;
            in_sync(stack, source).await?;
            wire.cut(true);
            self.wait_cut(cell).await?;
            wire.cut(false);
            anyhow::Ok(())
        }
        .await;
        // What the configuration file says holds again, whatever happened.
        standby
            .batch_execute("ALTER SYSTEM RESET primary_conninfo")
            .await
            .context("the standby's primary_conninfo")?;
        standby.batch_execute("SELECT pg_reload_conf()").await?;
        done
    }
}

fn primary_port(stack: &Stack, shard: u16) -> Result<u16> {
    let url = stack.var(&format!("SHARD{shard}_PRIMARY_URL"))?;
    let port =
        url.rsplit_once(':').and_then(|(_, rest)| rest.split('/').next()).context("a URL with a port")?;
    port.parse().context("a URL with a port")
}

/// Waits until the standby follows again, without which no commit ends.
pub async fn in_sync(stack: &Stack, shard: u16) -> Result<()> {
    let primary = stack.shard(shard).await?;
    let sql = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum') AND state = 'streaming')";
    for _ in 0..300 {
        if primary.query_one(sql, &[]).await?.try_get(0)? {
            return Ok(());
        }
        sleep(Duration::from_millis(100)).await;
    }
    bail!("no standby follows shard {shard} within 30 s")
}
