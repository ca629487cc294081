"""What labelling costs on a cluster: a simulation from measured times of the stages, beside a bound in closed form."""
