//! What must hold after a cell, read from the shards.

use super::bank::{BALANCE, Bank, Told, Transfer};
use crate::stack::Stack;
use anyhow::Result;
use std::collections::HashMap;
use uuid::Uuid;

/// Atomicity, the truth of what clients were told, and the sum of the money. Adds to the bank what this cell moved.
pub async fn judge(stack: &Stack, bank: &mut Bank, transfers: &[Transfer]) -> Result<Vec<String>> {
    let mut violations = Vec::new();
    let mut found: HashMap<Uuid, Vec<(Uuid, i64)>> = HashMap::new();
    let mut balances: HashMap<Uuid, i64> = HashMap::new();
    let ids: Vec<Uuid> = transfers.iter().map(|transfer| transfer.id).collect();
    for shard in 1..=stack.shards() {
        let client = stack.shard(shard).await?;
        let sql = "SELECT transfer_id, tenant_id, amount FROM chaos_moves WHERE transfer_id = ANY($1)";
        for row in client.query(sql, &[&ids]).await? {
            found.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
        }
        for row in client.query("SELECT tenant_id, balance FROM chaos_accounts", &[]).await? {
            balances.insert(row.get(0), row.get(1));
        }
    }
    for transfer in transfers {
        let mut there = found.remove(&transfer.id).unwrap_or_default();
        let mut whole = transfer.moves.clone();
        there.sort();
        whole.sort();
        if !there.is_empty() && there != whole {
            violations.push(format!("{}: {} of {} moves are there", transfer.id, there.len(), whole.len()));
        }
        match &transfer.told {
            Told::Committed if there.is_empty() => {
                violations.push(format!("{}: told that it is committed, and it is lost", transfer.id));
            }
            Told::RolledBack(why) if !there.is_empty() => {
                violations
                    .push(format!("{}: told that it is rolled back ({why}), and it is there", transfer.id));
            }
            _ => {}
        }
        for (account, amount) in there {
            *bank.settled.entry(account).or_default() += amount;
        }
    }
    for (account, balance) in &balances {
        let expected = BALANCE + bank.settled.get(account).copied().unwrap_or(0);
        if *balance != expected {
            violations.push(format!("account {account} has {balance}, its moves make {expected}"));
        }
    }
    let total: i64 = balances.values().sum();
    if total != bank.total() {
        violations.push(format!("there is {total} in all accounts, {} was paid in", bank.total()));
    }
    Ok(violations)
}
