create or replace macro gpumon_unix_s(t) as epoch_ns(t) / 1e9;
create or replace macro gpumon_number(s) as try_cast(s as double);
create or replace macro gpumon_nullable(x) as x;
