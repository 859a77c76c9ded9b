#!/usr/bin/env bash
# A Slurm of one node on the loopback interface, to try `gq sweep --slurm` and to run its test; Debian's slurm-wlm and
# munge must be installed. Usage, as root: local_slurm.sh start FOLDER | stop FOLDER. FOLDER keeps state and logs; after
# `start`, SLURM_CONF=FOLDER/slurm.conf is what sbatch, squeue and gq need.
set -euo pipefail
action=${1:?start or stop}
folder=$(mkdir -p "${2:?a folder}" && cd "$2" && pwd)
socket=$folder/munge/socket

stop() {
    for name in slurmctld slurmd munged; do
        [ -s "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
    done
}

if [ "$action" = stop ]; then
    stop
    exit
fi
stop
install -d -m 0755 -o munge -g munge "$folder/munge"
head -c 1024 /dev/urandom >"$folder/munge/key"
chown munge:munge "$folder/munge/key"
chmod 0400 "$folder/munge/key"
runuser -u munge -- munged --force --socket="$socket" --key-file="$folder/munge/key" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
cp "$folder/munge/pid" "$folder/munged.pid"
cores=$(nproc)
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
cat >"$folder/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$(hostname -s)(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2
MpiDefault=none
ReturnToService=2
OverTimeLimit=0
KillWait=15
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
mkdir -p "$folder/state" "$folder/spool"
export SLURM_CONF=$folder/slurm.conf
slurmctld -c
slurmd -c
for _ in $(seq 60); do
    sinfo -h -o %t 2>/dev/null | grep -q idle && exit
    sleep 1
done
tail -5 "$folder"/slurmctld.log "$folder"/slurmd.log >&2
exit 1
