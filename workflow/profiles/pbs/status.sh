#!/bin/sh
# What Snakemake asks of a job: running, success or failed. PBS has to remember ended jobs (job_history_enable).
if ! found=$(qstat -x -f "$1" 2>&1); then
  case $found in
  *[Uu]nknown*) echo "PBS does not know job $1: ask for job_history_enable=True" >&2 && echo failed ;;
  *) echo running ;; # the server did not answer: Snakemake asks again
  esac
  exit
fi
case $found in
*"job_state = F"*"Exit_status = 0"*) echo success ;;
*"job_state = F"*) echo failed ;; # no status: it was deleted before it began
*) echo running ;;
esac
